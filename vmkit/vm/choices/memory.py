"""The guest's memory: how much, on which pages, locked or given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkit.errors import RefusedError, SpecError
from vmkit.host import figures
from vmkit.plan import Rejected
from vmkit.values import Bytes
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import Backing
from vmkit.vm.facts import HostFacts
from vmkit.vm.families import Defaults
from vmkit.vm.spec_parts import Family, HugePages
from vmkit.vm.topology import Pool

if TYPE_CHECKING:
    from vmkit.image.manifest import Image
    from vmkit.vm.spec import VmSpec

MEMORY_SLACK: Final = 64 << 20
"""Bytes that QEMU takes beside the guest's memory: 40 to 60 MiB resident for small guests (measured with QEMU 10.0)."""
SIZES: Final = {HugePages.SIZE_2M: 2 << 20, HugePages.SIZE_1G: 1 << 30}


def size(spec: VmSpec, defaults: Defaults, image: Image | None, why: Reasons) -> Bytes:
    """How much memory the guest gets.

    Raises:
        SpecError: it is less than the image needs.
    """
    if spec.memory is None:
        need = image.min_memory if image else 0
        reason = "the default" if spec.family is Family.GENERAL else f"the default of the family {spec.family.value}"
        if image and need > defaults.memory:
            reason = f"what the image '{image.name}' needs"
        memory = Bytes(-(-max(defaults.memory, need) // (2 << 20)) * (2 << 20))
        why.chose("memory", memory, reason)
        return memory
    if image and spec.memory < image.min_memory:
        raise SpecError(
            f"{spec.memory} is less than the image '{image.name}' needs",
            path="memory",
            hint=f"{image.min_memory} or more",
        )
    why.chose("memory", spec.memory, ASKED)
    return spec.memory


def backing(
    spec: VmSpec,
    defaults: Defaults,
    facts: HostFacts,
    memory: Bytes,
    node: int | None,
    *,
    kvm: bool,
    assigned: bool,
    why: Reasons,
) -> Backing:
    """What the memory lies on. `assigned` says that devices of the host will reach into it.

    Raises:
        RefusedError: there is no room, or there are not enough huge pages; the hint reserves them.
        SpecError: this host has no pages of the size.
    """
    if facts.driver != "QEMU":
        for field, there in (("hugepages", spec.hugepages in SIZES), ("locked", bool(spec.locked))):
            if there:
                raise SpecError(f"is for QEMU hosts, {facts.uri} is {facts.driver}", path=field, hint="leave it out")
        return Backing(balloon=True)
    _paging(facts, why, kvm=kvm)
    page = _page(spec, defaults, facts, memory, node, why, kvm=kvm)
    _room(spec, facts, Bytes((0 if page else memory) + MEMORY_SLACK))
    locked = _locked(spec, defaults, facts, page, why, assigned=assigned)
    balloon = _balloon(spec, defaults, page, why, locked=locked, assigned=assigned)
    return Backing(page, locked, node, balloon)


def _paging(facts: HostFacts, why: Reasons, *, kvm: bool) -> None:
    """Which page tables the CPU walks. The kernel module's setting; no VM has a choice there."""
    if not kvm:
        why.chose("memory.paging", "software", "TCG translates addresses itself, with a cache of its own")
        return
    name = {"Intel": "EPT", "AMD": "NPT"}.get(facts.vendor, "nested paging")
    switch = {"Intel": "kvm_intel ept=1", "AMD": "kvm_amd npt=1"}.get(facts.vendor, "the KVM module's parameter")
    match facts.paging:
        case "nested":
            why.chose(
                "memory.paging",
                name if facts.vendor else "nested",
                "the host's KVM uses it: the CPU walks the guest's page tables and the host's itself",
                rejected=(Rejected("shadow page tables", "each change of the guest's tables would leave the guest"),),
                expected=figures.NESTED,
            )
        case "shadow":
            why.chose(
                "memory.paging",
                "shadow",
                "the host's KVM module has nested paging switched off, or the CPU lacks it",
                rejected=(Rejected(name, f"it is off: load {switch}"),),
                expected=figures.SHADOW,
            )
        case _:
            why.chose("memory.paging", "unknown", "the host's own files could not be read over this connection")


def _page(
    spec: VmSpec, defaults: Defaults, facts: HostFacts, memory: Bytes, node: int | None, why: Reasons, *, kvm: bool
) -> int | None:
    if spec.hugepages in SIZES:
        page = SIZES[spec.hugepages]
        _check_pool(page, facts, memory, node)
        where = f"{memory // page} of {pool(facts, node, page).free} free ones{_on(node)}"
        why.chose("hugepages", Bytes(page), f"{ASKED}; {where}", expected=figures.HUGE_PAGES)
        return page
    ordinary = _ordinary(facts)
    if spec.hugepages is HugePages.NONE or not defaults.hugepages:
        reason = ASKED if spec.hugepages is HugePages.NONE else ordinary
        rejected = (Rejected("2M or 1G", "reserved pages are lost to everything else on the host"),)
        why.chose("hugepages", "none", reason, rejected=rejected)
        return None
    if not kvm:
        why.chose("hugepages", "none", "TCG gains nothing from them: it does not use the CPU's translation")
        return None
    missing: list[Rejected] = []
    for page in sorted(SIZES.values(), reverse=True):
        have, need = pool(facts, node, page), -(-memory // page)
        if memory % page:
            missing.append(Rejected(str(Bytes(page)), f"{memory} is no multiple"))
        elif have.free < need:
            missing.append(Rejected(str(Bytes(page)), f"{need} needed, {have.free} free{_on(node)}"))
        else:
            reason = f"family {spec.family.value}, and {need} of {have.free} free ones{_on(node)}: fewer TLB misses"
            why.chose("hugepages", Bytes(page), reason, rejected=tuple(missing), expected=figures.HUGE_PAGES)
            return page
    why.chose("hugepages", "none", ordinary, rejected=tuple(missing), expected=figures.HUGE_PAGES)
    why.warn(f"no huge pages are free for {memory}; reserve them: {_reserve(facts, node, 2 << 20, memory)}")
    return None


def pool(facts: HostFacts, node: int | None, page: int) -> Pool:
    """Huge pages of a size on one node, or on all."""
    pools = [sizes[page] for n, sizes in facts.huge_pages.items() if page in sizes and node in (None, n)]
    return Pool(sum(p.total for p in pools), sum(p.free for p in pools))


def _check_pool(page: int, facts: HostFacts, memory: Bytes, node: int | None) -> None:
    known = {p for sizes in facts.huge_pages.values() for p in sizes}
    if known and page not in known:
        there = ", ".join(str(Bytes(p)) for p in sorted(known))
        raise SpecError(f"{facts.uri} has no pages of {Bytes(page)}", path="hugepages", hint=f"there is: {there}")
    if memory % page:
        up = Bytes(-(-memory // page) * page)
        raise SpecError(f"{memory} is no multiple of {Bytes(page)} pages", path="memory", hint=f"{up} would be")
    have, need = pool(facts, node, page), memory // page
    if have.free < need:
        raise RefusedError(
            f"hugepages: {need} pages of {Bytes(page)} are needed, {have.free} are free{_on(node)} on {facts.uri}",
            hint=f"reserve them there: {_reserve(facts, node, page, memory)}",
        )


def _reserve(facts: HostFacts, node: int | None, page: int, memory: Bytes) -> str:
    have = pool(facts, node, page)
    total = have.total - have.free + -(-memory // page)
    folder = f"hugepages-{page >> 10}kB/nr_hugepages"
    root = "/sys/kernel/mm/hugepages" if node is None else f"/sys/devices/system/node/node{node}/hugepages"
    return f"echo {total} > {root}/{folder}"


def _on(node: int | None) -> str:
    return "" if node is None else f" on node {node}"


def _ordinary(facts: HostFacts) -> str:
    match facts.thp:
        case "always" | "madvise":  # QEMU asks for them by madvise (util/oslib-posix.c, qemu_madvise)
            return f"transparent huge pages ({facts.thp}): the kernel merges ordinary pages as it can"
        case "never":
            return "ordinary pages of 4K; transparent huge pages are off on this host"
    return "ordinary pages; the kernel may merge them"


def _room(spec: VmSpec, facts: HostFacts, needed: Bytes) -> None:
    if facts.memory_free is not None and needed > facts.memory_free:
        raise RefusedError(
            f"{spec.name} needs {needed} of memory, {facts.uri} has {Bytes(facts.memory_free)} free",
            hint="give it less memory, or stop another VM",
        )


def _locked(
    spec: VmSpec, defaults: Defaults, facts: HostFacts, page: int | None, why: Reasons, *, assigned: bool
) -> bool:
    if spec.locked is not None:
        why.chose("locked", "yes" if spec.locked else "no", ASKED)
        return spec.locked
    if not defaults.locked:
        if assigned:
            why.chose("locked", "no", "VFIO pins the memory of guests with assigned devices by itself")
        return False
    if page:
        why.chose("locked", "no", "huge pages are never swapped", rejected=(Rejected("yes", "nothing to gain"),))
        return False
    del facts
    why.chose("locked", "yes", f"family {spec.family.value}: a guest page in the swap costs milliseconds")
    return True


def _balloon(spec: VmSpec, defaults: Defaults, page: int | None, why: Reasons, *, locked: bool, assigned: bool) -> bool:
    if spec.balloon is not None:
        why.chose("balloon", "virtio" if spec.balloon else "none", ASKED)
        if spec.balloon and (assigned or page):
            why.warn("the balloon gives nothing back: memory of assigned devices and huge pages stays where it is")
        return spec.balloon
    offered = Rejected("virtio", "the guest's memory stays as it is")
    if assigned or locked or page:
        reason = "an assigned device" if assigned else "locked memory" if locked else "huge pages"
        why.chose("balloon", "none", f"{reason}: nothing can be given back", rejected=(offered,))
        return False
    if not defaults.balloon:
        why.chose("balloon", "none", f"family {spec.family.value}: the guest keeps what it has", rejected=(offered,))
        return False
    why.chose(
        "balloon",
        "virtio",
        "with free page reporting: the host has back what the guest does not use",
        rejected=(Rejected("none", "a guest never gives back a page that it has touched"),),
    )
    return True
