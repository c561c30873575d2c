"""What the running kernel shows of the functions that a patch is about. Reads only."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmkit.errors import RefusedError
from vmkit.hotfix.kernel.module import ModuleFile, note_build_id
from vmkit.hotfix.manifest import Livepatch, Patch
from vmkit.system.boot import boot_id
from vmkit.system.livepatch import LiveKernel, PatchState


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The kernel, with one patch in hand.

    Attributes:
        release: as `uname -r` prints it.
        boot: which boot of it this is.
        available: it can be patched live.
        signed_only: why modules have to be signed; '' if they need not be.
        build_id: of the module that the functions are in; None if it is not loaded.
        places: function -> its addresses in that module.
        traceable: functions that ftrace can redirect; None if the kernel does not tell.
        others: function -> livepatch modules other than the patch's own that replace it.
        held: what memory holds, edit by edit; None where the function is not in one place.
        state: of the patch's own module.
        own_build_id: of the module that is loaded under the name of the patch's own; '' if none is.
        built: of the module in the patch file.
        signed: the latter has a signature behind it.
    """

    release: str
    boot: str
    available: bool
    signed_only: str = ""
    build_id: str | None = None
    places: dict[str, list[int]] = field(default_factory=dict)
    traceable: frozenset[str] | None = None
    others: dict[str, list[str]] = field(default_factory=dict)
    held: tuple[bytes | None, ...] = ()
    state: PatchState = PatchState(loaded=False)  # noqa: RUF009 - immutable
    own_build_id: str = ""
    built: str = ""
    signed: bool = False


def gather(kernel: LiveKernel, patch: Patch) -> KernelFacts:
    """Look at the kernel, as far as it is the one that the patch is for.

    Raises:
        RefusedError: not root, or the kernel does not show its memory; or the patch's module is none.
    """
    part = livepatch_of(patch)
    release, boot, available = kernel.release, boot_id(), kernel.available()
    notes = kernel.notes(part.object)
    if not available or release != part.release or notes is None:
        return KernelFacts(release, boot, available, kernel.signed_only())
    module = ModuleFile(part.module, f"the module of patch {patch.id}")
    if module.name != part.name or module.release != part.release or module.info.get("livepatch") != "Y":
        raise RefusedError(f"the module of patch {patch.id} is not what the patch file says", hint="make it again")
    places = kernel.addresses(patch.functions, part.object)
    traceable = kernel.traceable(patch.functions, part.object)
    own = kernel.notes(part.name)
    return KernelFacts(
        release,
        boot,
        available,
        kernel.signed_only(),
        note_build_id(notes),
        places,
        None if traceable is None else frozenset(traceable),
        {f: [n for n in kernel.patches_of(f, part.object) if n != part.name] for f in patch.functions},
        held(kernel, patch, places),
        kernel.state(part.name),
        note_build_id(own or b""),
        module.build_id,
        part.module.endswith(b"~Module signature appended~\n"),  # MODULE_SIG_STRING in include/linux/module_signature.h
    )


def held(kernel: LiveKernel, patch: Patch, places: dict[str, list[int]]) -> tuple[bytes | None, ...]:
    """What memory holds where the edits are. Raises RefusedError if the kernel does not show it."""
    found: list[bytes | None] = []
    for edit in patch.edits:
        at = places.get(edit.symbol, [])
        found.append(kernel.memory(at[0] + edit.symbol_offset, len(edit.expected)) if len(at) == 1 else None)
    return tuple(found)


def livepatch_of(patch: Patch) -> Livepatch:
    """The part of a patch that is about the kernel. It has one, or it would not be here."""
    assert patch.livepatch is not None  # noqa: S101 - told apart by the callers
    return patch.livepatch
