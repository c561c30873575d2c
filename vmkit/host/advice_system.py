"""Judging memory, the kernel, libvirt and versions."""

from __future__ import annotations

from collections.abc import Iterator

from vmkit.host import figures
from vmkit.host.advice_devices import kernel_option
from vmkit.host.facts.host import HostFacts
from vmkit.host.facts.libvirt import parse_version
from vmkit.host.facts.virt import Environment
from vmkit.host.finding import Finding, Level
from vmkit.host.traps import VERSION_TRAPS
from vmkit.values import Bytes

_CONTROLLERS = ("cpu", "cpuset", "memory")
_BLOCKS = {"v1": "blkio", "hybrid": "blkio", "v2": "io"}
_OPEN_FILES = 4096


def judge(facts: HostFacts) -> Iterator[Finding]:
    """Findings about memory, system and libvirt."""
    yield from _capture(facts)
    yield from _libvirt(facts)
    yield from _versions(facts)
    if facts.virt.environment is not Environment.XEN_DOM0:  # dom0's huge pages are its own, not its guests'
        yield from _huge_pages(facts)
    yield from _thp(facts)
    yield from _swap(facts)
    yield from _ksm(facts)
    yield from _userfaultfd(facts)
    yield from _kernel(facts)
    yield from _confinement(facts)


def _capture(facts: HostFacts) -> Iterator[Finding]:
    if not facts.system.complete:
        yield Finding(
            "capture-incomplete",
            "system",
            Level.PROBLEM,
            "the look at the host broke off before its end",
            "what was not read counts as unknown",
            ("vmkit doctor",),
        )
    if facts.cpu.threads == 0:
        yield Finding(
            "cpu-unknown", "cpu", Level.NOTE, "/proc/cpuinfo tells nothing", "whether guests can run is not known"
        )


def _libvirt(facts: HostFacts) -> Iterator[Finding]:
    libvirt = facts.libvirt
    if libvirt.error is not None:
        yield Finding(
            "libvirt-down",
            "libvirt",
            Level.PROBLEM,
            libvirt.error if "does not answer" in libvirt.error else f"libvirt does not answer: {libvirt.error}",
            "no VM can be made or seen",
            _start_libvirt(facts),
        )
        return
    if libvirt.driver not in ("QEMU", "Xen"):
        return
    program = "QEMU" if libvirt.driver == "QEMU" else "Xen"
    yield Finding(
        "libvirt", "libvirt", Level.OK, f"libvirt {libvirt.libvirt} answers, with {program} {libvirt.hypervisor}"
    )
    if libvirt.driver == "Xen":
        return  # guests' firmware and TPM are not libvirt's there
    if libvirt.uefi is False:
        fix = ("apt-get install ovmf",) if "debian" in facts.system.family else ("install OVMF (edk2-ovmf)",)
        yield Finding("uefi", "libvirt", Level.NOTE, "no UEFI firmware for guests", "guests boot by BIOS only", fix)
    elif libvirt.uefi and libvirt.secure_boot is False:
        yield Finding("secure-boot", "libvirt", Level.NOTE, "no UEFI firmware with secure boot for guests")
    if libvirt.uefi is not None and not libvirt.tpm:
        fix = ("apt-get install swtpm swtpm-tools",) if "debian" in facts.system.family else ("install swtpm",)
        yield Finding("tpm", "libvirt", Level.NOTE, "no TPM for guests", "Windows 11 does not install", fix)


def _start_libvirt(facts: HostFacts) -> tuple[str, ...]:
    if facts.system.sockets and not facts.system.root:
        return ('usermod -aG libvirt "$USER"    (as root; then log in anew)',)
    programs = {p.rpartition("/")[2] for p in facts.system.programs}
    if "virtqemud" in programs and "libvirtd" not in programs:
        return ("systemctl enable --now virtqemud.socket",)
    if "libvirtd" in programs and facts.system.systemd is False:
        return ("libvirtd -d    (there is no systemd here)",)
    if "libvirtd" in programs:
        return ("systemctl enable --now libvirtd",)
    if facts.system.programs and "debian" in facts.system.family:
        return ("apt-get install libvirt-daemon-system qemu-system", "systemctl enable --now libvirtd")
    return ("install libvirt and QEMU, then start libvirtd",)


def _versions(facts: HostFacts) -> Iterator[Finding]:
    if facts.libvirt.driver != "QEMU":
        return
    versions = {"qemu": facts.libvirt.hypervisor, "libvirt": facts.libvirt.libvirt}
    for trap in VERSION_TRAPS:
        version = parse_version(versions[trap.program])
        if version is not None and trap.catches(version):
            what = f"{'QEMU' if trap.program == 'qemu' else 'libvirt'} {versions[trap.program]}: {trap.harm}"
            yield Finding(f"trap-{trap.id}", "migration", Level.NOTE, what, "", (trap.fix,), trap.source)


def _huge_pages(facts: HostFacts) -> Iterator[Finding]:
    pools = facts.memory.huge_pages
    used = [p for p in pools if p.total]
    if used:
        text = ", ".join(f"{p.total} of {Bytes(p.size)}" for p in used)
        yield Finding("huge-pages", "memory", Level.OK, f"huge pages: {text}")
    elif pools:
        size = min(pools, key=lambda p: p.size)
        fix = ("sysctl vm.nr_hugepages=N    (N pages of 2M; into /etc/sysctl.d/ to keep it)",)
        if size.size != 2 * 2**20:
            fix = (f"echo N > /sys/kernel/mm/hugepages/hugepages-{size.size // 1024}kB/nr_hugepages",)
        yield Finding(
            "huge-pages-none",
            "memory",
            Level.NOTE,
            "no huge pages are set aside",
            figures.HUGE_PAGES.text,
            fix,
            figures.HUGE_PAGES.source,
        )
    if len(facts.memory.nodes) > 1:
        bare = [n.number for n in facts.memory.nodes if not any(p.total for p in n.huge_pages)]
        if used and bare:
            nodes = ", ".join(map(str, bare))
            cost = "a guest with huge pages finds them on the other node, and reads its memory across"
            fix = (f"echo N > /sys/devices/system/node/node{bare[0]}/hugepages/hugepages-2048kB/nr_hugepages",)
            yield Finding("huge-pages-node", "memory", Level.NOTE, f"NUMA node {nodes} has no huge pages", cost, fix)


def _thp(facts: HostFacts) -> Iterator[Finding]:
    if facts.memory.thp == "never":
        yield Finding(
            "thp-never",
            "memory",
            Level.GAP,
            "transparent huge pages are off",
            figures.HUGE_PAGES.text,
            ("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",),
            figures.HUGE_PAGES.source,
        )


def _swap(facts: HostFacts) -> Iterator[Finding]:
    memory = facts.memory
    if memory.swap and memory.zram is False and not memory.zswap:
        yield Finding(
            "swap-disk",
            "memory",
            Level.NOTE,
            f"guests' memory can be swapped to a disk ({Bytes(memory.swap)}), without compression in between",
            "a guest whose pages are out stands still while they are read; migration has to read them all",
            (
                "sysctl vm.swappiness=10",
                "or swap to compressed memory (zram-tools, zram-generator), or lock guests' memory",
            ),
        )


def _ksm(facts: HostFacts) -> Iterator[Finding]:
    if facts.memory.ksm:
        yield Finding(
            "ksm-on",
            "memory",
            Level.NOTE,
            "equal pages of guests are merged (KSM)",
            "costs CPU time, and lets one guest find out by timing what another has in memory",
            ("echo 2 > /sys/kernel/mm/ksm/run",),
        )


def _userfaultfd(facts: HostFacts) -> Iterator[Finding]:
    if facts.memory.userfaultfd == "none":
        yield Finding(
            "userfaultfd",
            "migration",
            Level.GAP,
            "the kernel has no userfaultfd",
            "no guest can be received by post-copy",
            ("install a kernel with CONFIG_USERFAULTFD=y",),
        )


def _kernel(facts: HostFacts) -> Iterator[Finding]:
    system = facts.system
    if system.mitigations and system.mitigations.split(",")[0] == "off":
        yield Finding(
            "mitigations-off",
            "system",
            Level.GAP,
            "mitigations of CPU vulnerabilities are switched off",
            "a guest can read memory of the host and of other guests",
            kernel_option(facts, "mitigations=auto, not =off"),
        )
    elif system.vulnerable and facts.virt.environment is not Environment.GUEST:
        names = ", ".join(sorted(system.vulnerable))
        cost = "a guest may be able to read memory that is not its own"
        fix: tuple[str, ...] = ("update the kernel and the CPU's microcode (intel-microcode, amd64-microcode)",)
        yield Finding("vulnerable", "system", Level.GAP, f"the kernel calls this CPU vulnerable: {names}", cost, fix)
    if system.smt_vulnerable and facts.cpu.smt:
        cost = "guests that share a core can read from each other"
        fix = kernel_option(facts, "mitigations=auto,nosmt")
        yield Finding(
            "smt-vulnerable", "system", Level.NOTE, "hyperthreads leak into each other on this CPU", cost, fix
        )
    yield from _cgroups(facts)
    if system.open_files and system.open_files[1] is not None and system.open_files[1] < _OPEN_FILES:
        what = f"at most {system.open_files[1]} open files a process"
        cost = "guests with many disks, queues or vhost run out of them"
        fix = ("ulimit -Hn 65536, or LimitNOFILE= in the unit of libvirtd",)
        yield Finding("open-files", "system", Level.NOTE, what, cost, fix)


def _cgroups(facts: HostFacts) -> Iterator[Finding]:
    system = facts.system
    if not system.cgroup:
        return
    wanted = (*_CONTROLLERS, _BLOCKS[system.cgroup])
    missing = [c for c in wanted if c not in system.controllers]
    if not missing:
        return
    cost = "vmkit limit cannot hold a guest's CPU time, memory or disk weight where its controller is missing"
    fix = kernel_option(facts, "cgroup_no_v1=all")
    if missing == ["memory"]:
        fix = kernel_option(facts, "cgroup_enable=memory")
    elif facts.virt.container:
        fix = ("start the container with its cgroup writable (--privileged, or --cgroupns=host)",)
    elif system.cgroup != "v2":
        fix = kernel_option(facts, "systemd.unified_cgroup_hierarchy=1")
    yield Finding("cgroup", "system", Level.GAP, f"cgroup controllers are missing: {', '.join(missing)}", cost, fix)


def _confinement(facts: HostFacts) -> Iterator[Finding]:
    if facts.libvirt.error is None and facts.libvirt.driver == "QEMU" and facts.libvirt.security == "none":
        active = facts.system.security in ("apparmor", "selinux")
        fix = ("set security_driver in /etc/libvirt/qemu.conf, then restart libvirtd",)
        if facts.system.security == "apparmor" and not _has(facts, "apparmor_parser"):
            package = "apt-get install apparmor" if "debian" in facts.system.family else "install AppArmor's programs"
            fix = (f"{package}, then restart libvirtd",)
        if not active:
            fix = ("boot the kernel with security=apparmor or security=selinux, then restart libvirtd",)
        yield Finding(
            "unconfined",
            "system",
            Level.NOTE,
            "guests are not confined by AppArmor or SELinux",
            "a guest that breaks out of QEMU has the rights of QEMU's user",
            fix,
        )


def _has(facts: HostFacts, program: str) -> bool:
    return any(p.rpartition("/")[2] == program for p in facts.system.programs)
