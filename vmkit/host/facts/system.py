"""Kernel, cgroups, limits, security modules, and what is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmkit.host.tree import Tree, integer, pairs


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """The operating system of a host.

    Attributes:
        hostname: its own name for itself.
        os: pretty name of the distribution.
        family: the distributions it descends from, itself first: 'debian', 'fedora', ...
        kernel: release, as uname -r has it.
        command_line: of the kernel.
        mitigations: 'off', 'auto', or as the command line has it; 'auto' where it has nothing; None if unknown.
        vulnerable: CPU vulnerabilities that the kernel reports as open, by their names in sysfs, with its words.
        smt_vulnerable: the kernel warns that hyperthreads leak into each other.
        cgroup: 'v1', 'v2' or 'hybrid'; None if unknown.
        controllers: cgroup controllers that are there.
        open_files: soft and hard limit of open files in the session that looked; None if unknown.
        security: security module that confines guests: 'apparmor', 'selinux', 'none'; None if unknown.
        grub: the boot loader is grub, configured in /etc/default/grub.
        efi: booted by UEFI; None if unknown.
        root: the facts were read as root.
        groups: groups of the user who looked.
        programs: paths of the programs that matter.
        sockets: sockets of libvirt's daemons that are there.
        systemd: systemd is the init system; None if unknown.
        complete: the capture reached its end.
    """

    hostname: str
    os: str
    family: tuple[str, ...]
    kernel: str
    command_line: str
    mitigations: str | None
    vulnerable: Mapping[str, str]
    smt_vulnerable: bool
    cgroup: str | None
    controllers: tuple[str, ...]
    open_files: tuple[int | None, int | None] | None
    security: str | None
    grub: bool
    efi: bool | None
    root: bool
    groups: tuple[str, ...]
    programs: tuple[str, ...]
    sockets: tuple[str, ...]
    systemd: bool | None
    complete: bool


def read(tree: Tree) -> SystemFacts:
    """The operating system facts of a captured host."""
    release = {k: v.strip("\"'") for k, v in pairs(tree.text("/etc/os-release"), "=").items()}
    command_line = " ".join(tree.text("/proc/cmdline").split())
    words = pairs("\n".join(command_line.split()), "=")
    states = _vulnerabilities(tree)
    cgroup, controllers = _cgroup(tree)
    return SystemFacts(
        hostname=tree.line("@hostname") or "",
        os=release.get("PRETTY_NAME", ""),
        family=tuple(f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".split()),
        kernel=tree.line("@release") or "",
        command_line=command_line,
        mitigations=words.get("mitigations", "auto") if command_line else None,
        vulnerable={n: s for n, s in states.items() if s.startswith("Vulnerable")},
        smt_vulnerable=any("SMT vulnerable" in s for s in states.values()),
        cgroup=cgroup,
        controllers=controllers,
        open_files=_open_files(tree.text("/proc/self/limits")),
        security=_security(tree),
        grub=tree.has("/etc/default/grub") is True,
        efi=tree.listed("/sys/firmware", "efi") if "/sys/firmware" in tree.folders else tree.has("/sys/firmware/efi"),
        root=tree.number("@uid") == 0,
        groups=tuple(tree.text("@groups").split()),
        programs=tuple(tree.text("@programs").split()),
        sockets=tuple(sorted(p for p in tree.nodes if p.startswith("/run/libvirt/"))),
        systemd=tree.has("/run/systemd/system"),
        complete=tree.complete,
    )


def _vulnerabilities(tree: Tree) -> dict[str, str]:
    folder = "/sys/devices/system/cpu/vulnerabilities/"
    return {p.removeprefix(folder): tree.line(p) or "" for p in tree.below(folder, "")}


def _cgroup(tree: Tree) -> tuple[str | None, tuple[str, ...]]:
    if "/sys/fs/cgroup/cgroup.controllers" in tree.files:
        return "v2", tuple(sorted(tree.text("/sys/fs/cgroup/cgroup.controllers").split()))
    names = tree.names("/sys/fs/cgroup")
    if not names:
        return None, ()
    split = {c for n in names for c in n.split(",")} - {"systemd", "unified", "name=systemd"}
    return "hybrid" if "unified" in names else "v1", tuple(sorted(split))


def _open_files(limits: str) -> tuple[int | None, int | None] | None:
    """Soft and hard limit; None in the pair stands for unlimited (proc_pid_limits(5))."""
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            words = line.removeprefix("Max open files").split()
            if len(words) >= 2:
                return integer(words[0]), integer(words[1])
    return None


def _security(tree: Tree) -> str | None:
    modules = (tree.line("/sys/kernel/security/lsm") or "").split(",")
    if tree.has("/sys/fs/selinux/enforce") is True or "selinux" in modules:
        return "selinux"
    if "apparmor" in modules or tree.switch("/sys/module/apparmor/parameters/enabled"):
        return "apparmor"
    if tree.listed("/sys/module", "apparmor"):
        return None if "/sys/module/apparmor/parameters/enabled" in tree.denied else "none"
    return "none" if modules != [""] or tree.listed("/sys/module", "apparmor") is False else None
