"""Which CPU the guest sees."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from vmkit.errors import SpecError
from vmkit.plan import Rejected
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import CpuDesign
from vmkit.vm.facts import HostFacts
from vmkit.vm.families import Defaults

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec

OLDEST: Final = ("x86-64-v2", "Nehalem", "Westmere", "Opteron_G3", "Conroe", "kvm64", "qemu64", "qemu64-v1")
"""Models that hosts of very different age can give, the most capable first. Nehalem and Westmere are what x86-64-v2
asks for, and nearly nothing more; Opteron_G3 is AMD's nearest; kvm64 and qemu64 run on anything."""
_PASSTHROUGH = Rejected("host-passthrough", "moves only to hosts with the same CPU and the same microcode")
_MODEL = Rejected("host-model", "leaves out what libvirt has no name for, and the host's cache layout")
_NAMED = Rejected("a named model", "hides features that this host has")


def cpu(
    spec: VmSpec,
    defaults: Defaults,
    facts: HostFacts,
    domain_type: str,
    topology: tuple[int, int, int] | None,
    why: Reasons,
) -> CpuDesign | None:
    """The CPU of the guest; None leaves it to the driver.

    Raises:
        SpecError: the model is not one that a guest can have here.
    """
    if facts.driver != "QEMU":
        return None
    kvm = domain_type == "kvm"
    match spec.cpu:
        case "auto" | "emulated":
            found = _auto(defaults, facts, domain_type, why) if kvm else _emulated(why)
        case "host" if kvm:
            why.chose("cpu", "host-passthrough", f"{ASKED}; moves only to hosts with the same CPU", rejected=(_MODEL,))
            found = CpuDesign("host-passthrough", migratable=True, cache_passthrough=True)
        case "host" | "maximum":
            reason = ASKED if spec.cpu == "maximum" else "'host' under TCG means all that TCG can emulate"
            why.chose("cpu", "maximum", reason)
            found = CpuDesign("maximum")
        case _:
            found = _named(spec.cpu, facts, domain_type, why)
    if topology is None:
        return found
    sockets, cores, threads = topology
    why.chose("cpu.topology", f"{sockets} x {cores} x {threads}", "sockets, cores, threads: as the host CPUs it is on")
    return CpuDesign(found.mode, found.model, found.migratable, found.cache_passthrough, topology)


def _auto(defaults: Defaults, facts: HostFacts, domain_type: str, why: Reasons) -> CpuDesign:
    match defaults.cpu:
        case "host-passthrough":
            why.chose(
                "cpu",
                "host-passthrough",
                "every feature and the caches of the host's CPU, but for what would keep the guest from moving",
                rejected=(_MODEL, _NAMED),
            )
            return CpuDesign("host-passthrough", migratable=True, cache_passthrough=True)
        case "oldest":
            usable = facts.cpu_models.get(domain_type, frozenset())
            for model in OLDEST:
                if model in usable:
                    return _conservative(model, why)
    why.chose(
        "cpu",
        "host-model",
        "nearly all of the host's features, and can still move to a similar host",
        rejected=(_PASSTHROUGH, _NAMED),
    )
    return CpuDesign("host-model")


def _conservative(model: str, why: Reasons) -> CpuDesign:
    newer = OLDEST[: OLDEST.index(model)]
    rejected: tuple[Rejected, ...] = (Rejected("host-model", "an older host could not take the guest over"),)
    if newer:
        rejected += (Rejected(" or ".join(newer[-2:]), "libvirt says that this host cannot give it"),)
    why.chose("cpu", model, "the most capable model that hosts of any age have", rejected=rejected)
    return CpuDesign("custom", model)


def _emulated(why: Reasons) -> CpuDesign:
    why.chose(
        "cpu",
        "qemu64",
        "TCG: the plain model emulates fastest and moves to any host",
        rejected=(Rejected("maximum", "guests then use vector instructions, which TCG emulates slowly"),),
    )
    return CpuDesign("custom", "qemu64")


def _named(model: str, facts: HostFacts, domain_type: str, why: Reasons) -> CpuDesign:
    known = facts.cpu_models.get(domain_type, frozenset())
    if model not in known:
        near = difflib.get_close_matches(model, sorted(known), n=3, cutoff=0.5)
        hint = f"usable here: {', '.join(near)}" if near else "auto, host, maximum and emulated always work"
        raise SpecError(f"no guest of {facts.uri} can have the CPU '{model}'", path="cpu", hint=hint)
    why.chose("cpu", model, ASKED)
    return CpuDesign("custom", model)
