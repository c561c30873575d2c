"""CPU: what it is, what it can do for guests, how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmkit.host.tree import Tree, cpu_list, integer, pairs

VENDORS: Final = {
    "GenuineIntel": "Intel",
    "AuthenticAMD": "AMD",
    "HygonGenuine": "Hygon",
    "CentaurHauls": "Centaur",
    "  Shanghai  ": "Zhaoxin",
}
ARM: Final = {
    0x41: "Arm",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x50: "APM",
    0x51: "Qualcomm",
    0x61: "Apple",
    0xC0: "Ampere",
}
"""'CPU implementer' of /proc/cpuinfo (Arm MIDR_EL1.Implementer)."""
NEOVERSE: Final = {
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD08: "Cortex-A72",
}

LEVELS: Final = (
    ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"),
    ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"),
    ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
)
"""What x86-64-v2, -v3 and -v4 add, by the kernel's names (x86-64 psABI, 'Micro-Architecture Levels')."""
_OF_INTEREST: Final = frozenset(
    [
        "vmx",
        "svm",
        "ept",
        "vpid",
        "npt",
        "avic",
        "x2avic",
        "vgif",
        "vnmi",
        "apicv",
        "posted_intr",
        "unrestricted_guest",
        "shadow_vmcs",
        "pml",
        "flexpriority",
        "tsc_scaling",
        "vmcb_clean",
        "decodeassists",
        "pdpe1gb",
        "x2apic",
        "sev",
        "sev_es",
        "sev_snp",
        "tdx_host_platform",
        "hypervisor",
    ]
)


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The CPUs of a host.

    Attributes:
        vendor: 'Intel', 'AMD', 'Arm', ...; empty if it does not say.
        model: the marketing name.
        arch: as uname -m has it: 'x86_64', 'aarch64'.
        extension: 'VT-x' or 'SVM', the hardware's support for guests; None where the CPU shows neither or has another
            architecture.
        nested_paging: whether the CPU has EPT or NPT; None if that cannot be seen.
        virtual_interrupts: whether it has APICv or AVIC; None if that cannot be seen.
        features: the flags that matter to guests.
        level: micro-architecture level, 1 to 4, of x86-64-v1 to -v4; None on other architectures.
        sockets: physical packages.
        cores: physical cores in all.
        threads: CPUs that are online.
        smt: whether cores run several threads; None if unknown.
    """

    vendor: str
    model: str
    arch: str
    extension: str | None
    nested_paging: bool | None
    virtual_interrupts: bool | None
    features: tuple[str, ...]
    level: int | None
    sockets: int
    cores: int
    threads: int
    smt: bool | None


def flags(tree: Tree) -> frozenset[str]:
    """Flags of the first CPU, with Intel's 'vmx flags' among them; empty where there are none to see."""
    found = pairs(tree.text("/proc/cpuinfo"))
    words = found.get("flags", found.get("Features", "")).split() + found.get("vmx flags", "").split()
    return frozenset(words)


def read(tree: Tree) -> CpuFacts:
    """The CPU facts of a captured host."""
    info, have = pairs(tree.text("/proc/cpuinfo")), flags(tree)
    vendor, model = _name(info)
    extension = "VT-x" if "vmx" in have else "SVM" if "svm" in have else None
    arch = tree.line("@machine") or ""
    sockets, cores, threads = _topology(tree)
    return CpuFacts(
        vendor=vendor,
        model=model,
        arch=arch,
        extension=extension,
        nested_paging=bool(have & {"ept", "npt"}) if extension else None,
        virtual_interrupts=_virtual_interrupts(have, extension, "vmx flags" in info),
        features=tuple(sorted(have & _OF_INTEREST)),
        level=level(have) if arch == "x86_64" and have else None,
        sockets=sockets,
        cores=cores,
        threads=threads,
        smt=tree.switch("/sys/devices/system/cpu/smt/active"),
    )


def level(have: frozenset[str]) -> int:
    """The highest x86-64 level whose flags, and those of all levels below, are there."""
    reached = 1
    for number, needed in enumerate(LEVELS, 2):
        if not have.issuperset(needed):
            break
        reached = number
    return reached


def _name(info: dict[str, str]) -> tuple[str, str]:
    if "vendor_id" in info:
        return VENDORS.get(info["vendor_id"], info["vendor_id"]), info.get("model name", "")
    code, part = info.get("CPU implementer", ""), info.get("CPU part", "")
    try:
        return ARM.get(int(code, 16), code), NEOVERSE.get(int(part, 16), part)
    except ValueError:
        return code, part


def _virtual_interrupts(have: frozenset[str], extension: str | None, listed: bool) -> bool | None:
    """Linux lists VMX's finer features since 5.6 only ('vmx flags'); before that APICv cannot be seen in the CPU."""
    if extension == "SVM":
        return "avic" in have
    return "apicv" in have if extension == "VT-x" and listed else None


def _topology(tree: Tree) -> tuple[int, int, int]:
    packages, cores = set[str](), set[tuple[str, str, str]]()
    root = "/sys/devices/system/cpu/cpu"
    for path in tree.below(root, "/topology/core_id"):
        base = path.removesuffix("core_id")
        package = tree.line(base + "physical_package_id") or "0"
        packages.add(package)
        cores.add((package, tree.line(base + "die_id") or "0", tree.line(path) or "0"))
    listed = tree.text("/proc/cpuinfo").splitlines()
    counted = sum(1 for s in listed if s.startswith("processor") and integer(s.partition(":")[2]) is not None)
    threads = len(cpu_list(tree.line("/sys/devices/system/cpu/online"))) or counted
    return len(packages), len(cores), threads
