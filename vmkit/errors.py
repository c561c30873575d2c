"""The errors that vmkit raises, and the exit code that each one means.

::

    VmkitError                      1  anything else
     +-- SpecError                  2  the input is wrong; says the path of the field
     +-- RefusedError               3  nothing was touched
     |    +-- NotFoundError            the thing named does not exist
     |    +-- ConflictError            a thing of that name exists, or someone else is using it
     |    +-- UnsupportedError         this host, driver or version cannot do it
     |    +-- UnreachableError         the host does not answer
     +-- EffectError                4  a step failed; says which one and what is left
     +-- DeadlineError              5  says what was waited for
     +-- IndeterminateError         6  the outcome is not known; says what to look at
     +-- CancelledError             7  the user stopped it; says what state that left

Every message is one line that stands on its own. `hint` is the next step: a command that can be run, or the setting
that mends it.
"""

from __future__ import annotations

from typing import ClassVar


class VmkitError(Exception):
    """Root of every error that vmkit raises on purpose.

    Args:
        message: one line, without a trailing full stop, that names the thing it is about.
        hint: the next step, or None where there is none worth naming.
        details: further lines that help to understand (the tail of a console, say).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    @property
    def kind(self) -> str:
        """The class name in the short form that machine-readable output carries: 'not-found', 'spec', ..."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


class SpecError(VmkitError):
    """The input is wrong. `path` is the field, written as in `disks[1].bus`; empty for the whole document."""

    exit_code = 2

    def __init__(self, message: str, *, path: str = "", hint: str | None = None, details: tuple[str, ...] = ()) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint, details=details)
        self.path = path


class RefusedError(VmkitError):
    """The operation was not begun; nothing was touched."""

    exit_code = 3


class NotFoundError(RefusedError):
    """The thing that was named does not exist."""


class ConflictError(RefusedError):
    """The name is taken, or another operation holds the thing."""


class UnsupportedError(RefusedError):
    """This host, driver or version cannot do what was asked."""


class UnreachableError(RefusedError):
    """The host does not answer, or does not let us in."""


class EffectError(VmkitError):
    """A step failed. The message names the step; `left` says what state that leaves behind."""

    exit_code = 4

    def __init__(
        self, message: str, *, left: str | None = None, hint: str | None = None, details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(f"{message}; {left}" if left else message, hint=hint, details=details)
        self.left = left


class DeadlineError(VmkitError):
    """A wait ran out of time. The message names what was waited for."""

    exit_code = 5


class IndeterminateError(VmkitError):
    """The outcome is not known, and guessing could do harm. The message says what to look at."""

    exit_code = 6


class CancelledError(VmkitError):
    """Someone stopped the operation. The message says what state that left."""

    exit_code = 7
