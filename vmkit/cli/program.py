"""The program that the commands belong to. It is imported from here, so that Ctrl-C meanwhile is no traceback."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


def program() -> None:
    """Entry point of `vmkit` and `python -m vmkit`."""
    try:
        from vmkit.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.exit(interrupted())


def interrupted() -> int:
    """Say that Ctrl-C ended the command; return its exit code.

    Ctrl-C that arrives while Python evaluates text (as `dataclasses` does at import) leaves a mark in the interpreter,
    which lets `python -m vmkit` die of SIGINT although the exception was caught. Evaluating anything takes it back.
    """
    exec("")  # noqa: S102
    sys.stderr.write("interrupted\n")
    return INTERRUPTED
