"""The files that a lab's programs read, as text. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from xml.etree import ElementTree as ET

from vmkit.lab.layout import FURNISHED, Layout
from vmkit.lab.pair.blueprint import Blueprint, HostPlan

BRIDGE: Final = "br0"
DOMAIN: Final = "lab"
DAEMONS: Final = ("sshd", "virtlogd", "libvirtd")
LIBVIRT_SOCKET: Final = "/run/libvirt/libvirt-sock"
HOME: Final = "/run/root"
"""Home of root in a host: empty, and gone with the host."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program that a host's init starts; it stays in the foreground and its output goes to `log`."""

    name: str
    argv: tuple[str, ...]
    log: str


@dataclass(frozen=True, slots=True)
class InitConfig:
    """What a host's init does, in this order: name the host, mount, make folders, start daemons."""

    hostname: str
    tmpfs: tuple[str, ...]
    binds: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    daemons: tuple[Daemon, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> InitConfig:
        """Read what `plain` gave."""
        return cls(
            plain["hostname"],
            tuple(plain["tmpfs"]),
            tuple((a, b) for a, b in plain["binds"]),
            tuple(plain["folders"]),
            tuple(Daemon(d["name"], tuple(d["argv"]), d["log"]) for d in plain["daemons"]),
        )


def host_files(layout: Layout, plan: Blueprint, host: HostPlan) -> dict[str, str]:
    """Files of one host, by their path below its folder."""
    return {
        "etc-libvirt/libvirtd.conf": libvirtd_conf(host),
        "etc-libvirt/qemu.conf": qemu_conf(layout, host),
        "etc-libvirt/virtlogd.conf": "",
        "etc-ssh/sshd_config": sshd_config(layout, host),
        "etc-ssh/ssh_config": ssh_config(layout, plan),
        "hosts": hosts_file(plan),
        "hostname": f"{host.name}\n",
        # sshd refuses accounts whose password field says locked, as root's does on many machines; '*' is "no password".
        "shadow": "root:*:19000:0:99999:7:::\n",
    }


def passwd(machine: str) -> str:
    """The machine's /etc/passwd with another home for root, so that no start file of root's shell runs in a host."""
    lines = []
    for line in machine.splitlines():
        fields = line.split(":")
        if fields[0] == "root" and len(fields) == 7:
            line = ":".join((*fields[:5], HOME, "/bin/sh"))
        lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def host_folders() -> tuple[str, ...]:
    """Folders of one host, below its own."""
    return (
        "etc-libvirt",
        "etc-libvirt/pki",
        "etc-ssh",
        "var-lib-libvirt",
        "var-cache-libvirt",
        "var-log/libvirt",
        "log",
    )


def init_config(layout: Layout, host: HostPlan, programs: dict[str, Path]) -> InitConfig:
    """What the init of a host has to do.

    Args:
        layout: the lab.
        host: the host.
        programs: where each of DAEMONS is.
    """
    own, logs = layout.host(host.name), layout.logs(host.name)
    binds = {
        "etc-libvirt": "/etc/libvirt",
        "etc-ssh": "/etc/ssh",
        "var-lib-libvirt": "/var/lib/libvirt",
        "var-cache-libvirt": "/var/cache/libvirt",
        "var-log": "/var/log",
        "hosts": "/etc/hosts",
        "passwd": "/etc/passwd",
        "hostname": "/etc/hostname",
        "shadow": "/etc/shadow",
    }
    arguments = {
        "sshd": ("-D", "-e", "-f", "/etc/ssh/sshd_config"),
        "virtlogd": ("--config", "/etc/libvirt/virtlogd.conf"),
        "libvirtd": ("--config", "/etc/libvirt/libvirtd.conf"),
    }
    return InitConfig(
        hostname=host.name,
        tmpfs=("/run",),
        binds=tuple((str(own / name), target) for name, target in binds.items()),
        folders=("/run/sshd", "/run/lock", "/run/libvirt", HOME, FURNISHED),
        daemons=tuple(Daemon(n, (str(programs[n]), *arguments[n]), str(logs / f"{n}.log")) for n in DAEMONS),
    )


def libvirtd_conf(host: HostPlan) -> str:
    """libvirtd.conf. The host's own uuid is what lets libvirt migrate between two hosts on one machine."""
    return f'host_uuid = "{host.uuid}"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n'


def qemu_conf(layout: Layout, host: HostPlan) -> str:
    """qemu.conf.

    remember_owner and the private /dev of a guest want extended attributes and mounts that a container may lack;
    the pool is one folder for all hosts, which libvirt cannot tell from its file system (shared_filesystems: libvirt
    10.8 and newer, older ones skip the line). The certificates of a migration by TLS are the host's own, too.
    """
    return "".join(
        f"{line}\n"
        for line in (
            'user = "root"',
            'group = "root"',
            'security_driver = "none"',
            "cgroup_controllers = []",
            "namespaces = []",
            "remember_owner = 0",
            'stdio_handler = "logd"',
            f'migration_address = "{host.address}"',
            f'migration_host = "{host.address}"',
            'migrate_tls_x509_cert_dir = "/etc/libvirt/pki"',
            f'shared_filesystems = [ "{layout.pool}" ]',
        )
    )


def sshd_config(layout: Layout, host: HostPlan) -> str:
    """What sshd reads: root only, by key only. What a vmkit that runs there remembers is the host's own."""
    return "".join(
        f"{line}\n"
        for line in (
            f"ListenAddress {host.address}",
            "Port 22",
            "HostKey /etc/ssh/ssh_host_ed25519_key",
            "PidFile /run/sshd.pid",
            "AuthorizedKeysFile /etc/ssh/authorized_keys",
            "AllowUsers root",
            "PermitRootLogin prohibit-password",
            "PubkeyAuthentication yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "UseDNS no",
            "X11Forwarding no",
            "MaxSessions 100",
            "MaxStartups 100",
            "Subsystem sftp internal-sftp",
            f'SetEnv "VMKIT_HOME={layout.host(host.name) / "var-lib-vmkit"}"',
        )
    )


def ssh_config(layout: Layout, plan: Blueprint) -> str:
    """What ssh reads on the user's side and in the hosts. Nothing in ~/.ssh is read or written."""
    named = [f"Host {h.name}\n  HostName {h.address}\n" for h in plan.hosts]
    common = (
        "User root",
        "Port 22",
        f"IdentityFile {layout.key}",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        f"UserKnownHostsFile {layout.known_hosts}",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        "CheckHostIP no",
        "BatchMode yes",
        "ConnectTimeout 10",
        # A host that is torn down sends no farewell; without this its clients would wait for ever.
        "ServerAliveInterval 5",
        "ServerAliveCountMax 3",
        "ControlMaster no",
        "ControlPath none",
        "LogLevel ERROR",
    )
    return "".join(named) + "Host *\n" + "".join(f"  {line}\n" for line in common)


def ssh_wrapper(layout: Layout) -> str:
    """The program for `command=` of a libvirt URI (https://libvirt.org/uri.html, ssh transport)."""
    return f'#!/bin/sh\nexec ssh -F {layout.ssh_config} "$@"\n'


def known_hosts(plan: Blueprint, keys: dict[str, str]) -> str:
    """known_hosts: the public host key of each host, under its address and its name."""
    return "".join(f"{h.address},{h.name} {' '.join(keys[h.name].split()[:2])}\n" for h in plan.hosts)


def hosts_file(plan: Blueprint) -> str:
    """/etc/hosts of every host. A host's own name leads to its bridge, since libvirt migrates to no 'localhost'."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{h.address} {h.name} {h.name}.{DOMAIN}" for h in plan.hosts]
    return "".join(f"{line}\n" for line in lines)


def dnsmasq_conf(layout: Layout, plan: Blueprint) -> str:
    """dnsmasq(8) in the switch: DHCP for guests, names of hosts and guests. It asks nobody outside."""
    lines = [
        "keep-in-foreground",
        "user=root",
        "group=root",
        "pid-file=",
        f"interface={BRIDGE}",
        "except-interface=lo",
        "bind-interfaces",
        "no-hosts",
        "no-resolv",
        "no-ping",
        f"domain={DOMAIN}",
        f"local=/{DOMAIN}/",
        "expand-hosts",
        "dhcp-authoritative",
        f"dhcp-range={plan.dhcp[0]},{plan.dhcp[1]},{plan.subnet.netmask},12h",
        f"dhcp-option=option:router,{plan.gateway}",
        f"dhcp-leasefile={layout.folder / 'switch' / 'leases'}",
        *(f"host-record={h.name},{h.name}.{DOMAIN},{h.address}" for h in plan.hosts),
    ]
    return "".join(f"{line}\n" for line in lines)


def uri(layout: Layout, host: HostPlan) -> str:
    """The libvirt URI of a host, usable from the machine and from the lab's other hosts."""
    return f"qemu+ssh://root@{host.address}/system?command={quote(str(layout.ssh), safe='/')}"


def network_xml() -> str:
    """The libvirt network `lab` on each host: guests join the host's bridge (https://libvirt.org/formatnetwork.html)."""
    root = ET.Element("network")
    ET.SubElement(root, "name").text = "lab"
    ET.SubElement(root, "forward", mode="bridge")
    ET.SubElement(root, "bridge", name=BRIDGE)
    return ET.tostring(root, encoding="unicode")


def pool_xml(layout: Layout) -> str:
    """The storage pool `vmkit` on each host: one folder for all (https://libvirt.org/formatstorage.html)."""
    root = ET.Element("pool", type="dir")
    ET.SubElement(root, "name").text = "vmkit"
    ET.SubElement(ET.SubElement(root, "target"), "path").text = str(layout.pool)
    return ET.tostring(root, encoding="unicode")
