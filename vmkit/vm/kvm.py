"""The proof that KVM works on a host: the probe of floor 1 with the micro image, which is brought there first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.errors import NotFoundError, VmkitError
from vmkit.host.facts.probe import ProbeFacts
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent

if TYPE_CHECKING:
    from vmkit.image.manifest import Image

NOT_OFFERED: Final = "libvirt offers no KVM here (no /dev/kvm, or the kvm modules are not loaded)"


@dataclass(frozen=True, slots=True)
class KvmFact:
    """Whether KVM runs a guest on this host, and how that is known. `proven` is False where it could not be tried."""

    works: bool
    reason: str
    proven: bool = True


def prove(host: Host, reporter: Reporter = silent) -> KvmFact:
    """What the probe guest says, or said since the host booted. Whatever stands in its way is the reason given.

    The image 'micro' is built if this machine has none, and its kernel and initramfs are put into the host's pool.
    """
    from vmkit.host.probe import probe_kvm
    from vmkit.image.place import place

    try:
        placed = place(host, _image(reporter), reporter)
        if placed.kernel is None or placed.initrd is None:
            return KvmFact(False, "not proven: the probe guest has no kernel", proven=False)
        verdict = probe_kvm(host, placed.kernel, placed.initrd, reporter)
    except VmkitError as e:
        return KvmFact(False, f"not proven: {e.message}", proven=False)
    return KvmFact(verdict.works, verdict.reason)


def prove_facts(host: Host, reporter: Reporter = silent) -> ProbeFacts:
    """The same for a report on the host: unknown where it could not be tried."""
    fact = prove(host, reporter)
    return ProbeFacts(fact.works if fact.proven else None, fact.reason)


def _image(reporter: Reporter) -> Image:
    from vmkit.image.api import Images

    images = Images()
    try:
        return images.get("micro")
    except NotFoundError:
        reporter(Note("building the image 'micro' once: its kernel is the guest that proves whether KVM works"))
        return images.build_micro(reporter=reporter)
