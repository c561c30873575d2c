"""What a kind of lab has to be able to do, and where each kind is."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

from vmkit.errors import SpecError
from vmkit.lab.layout import Layout
from vmkit.lab.model import Lab, LabHost
from vmkit.lab.state import LabState
from vmkit.progress import Reporter
from vmkit.values import quoted

KINDS: Final = {"pair": "vmkit.lab.pair.kind", "kvm": "vmkit.lab.kvm.kind", "xen": "vmkit.lab.xen.kind"}
"""Kind -> module with its functions, or with an object `KIND` that has them. They are those of `Kind`."""


class Kind(Protocol):
    """The functions of a kind's module."""

    @staticmethod
    def wish(hosts: int | None, options: Any) -> Any:
        """Check what is asked for; returns it in the kind's own form. Pure.

        Raises:
            SpecError: it cannot be.
        """

    @staticmethod
    def check_place(layout: Layout) -> None:
        """See that a lab can live in its folder, and that this user may make one.

        Raises:
            RefusedError: it cannot, or not by this user.
        """

    @staticmethod
    def check_same(state: LabState, wish: Any) -> None:
        """See that a lab which is up is what is wished for now.

        Raises:
            ConflictError: it is not.
        """

    @staticmethod
    def build(layout: Layout, state: LabState, wish: Any, reporter: Reporter) -> None:
        """Make all of a lab whose folder holds nothing but its state; the caller tears down after an error."""

    @staticmethod
    def describe(layout: Layout, state: LabState) -> tuple[LabHost, ...]:
        """The hosts as they are now; none where they are not settled yet."""

    @staticmethod
    def entering(layout: Layout, host: LabHost, argv: Sequence[str], terminal: bool) -> Sequence[str]:
        """The command that runs a program in a host, on a terminal if this process has one."""

    @staticmethod
    def needs_root() -> str:
        """Why only root may handle such a lab; '' where that is not so."""


def kind_of(name: str) -> Kind:
    """The functions of a kind.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in KINDS:
        raise SpecError(f"{quoted(name)} is not a kind of lab", path="kind", hint=f"there is: {', '.join(KINDS)}")
    module: Any = importlib.import_module(KINDS[name])
    return getattr(module, "KIND", module)  # type: ignore[no-any-return]


def describe(layout: Layout, state: LabState) -> Lab:
    """A lab as it is now."""
    if state.kind not in KINDS:
        return Lab(layout.name, state.kind, "broken", "another version of vmkit made it", layout.folder, ())
    hosts = kind_of(state.kind).describe(layout, state)
    if not hosts:
        return Lab(layout.name, state.kind, "broken", f"it is {state.phase.value}", layout.folder, ())
    return Lab.of(layout.name, state.kind, layout.folder, hosts)
