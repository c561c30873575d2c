"""The files that make a loaded machine one host of one lab, as text. Pure."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from vmkit.lab.layout import Layout
from vmkit.lab.nested.blueprint import DHCP, DOMAIN, PREFIX, SUBNET, Blueprint, HostPlan
from vmkit.lab.nested.flavour import Flavour

BRIDGE: Final = "br0"
POOL: Final = "/var/lib/vmkit/pool"
OWN: Final = "/etc/vmkit-lab"
WRAPPER: Final = """#!/bin/sh
PYTHONPATH=/opt/vmkit exec python3 -P -m vmkit "$@"
"""

_SCHEMES: Final = {"kvm": "qemu", "xen": "xen"}
"""Kind of a lab -> libvirt's driver on its hosts."""

_COMMON: Final = (
    "User root",
    "IdentitiesOnly yes",
    "IdentityAgent none",
    "GlobalKnownHostsFile /dev/null",
    "StrictHostKeyChecking yes",
    "UpdateHostKeys no",
    "CheckHostIP no",
    "BatchMode yes",
    # Under emulation on a busy machine a log-in may take seconds.
    "ConnectTimeout 60",
    # A host that is torn down sends no farewell; without this its clients would wait for ever.
    "ServerAliveInterval 15",
    "ServerAliveCountMax 8",
    "ControlMaster no",
    "ControlPath none",
    "LogLevel ERROR",
)


def ssh_config(layout: Layout, plan: Blueprint) -> str:
    """What ssh reads on this machine. Nothing in ~/.ssh is read or written."""
    named = [f"Host {h.name}\n  HostName 127.0.0.1\n  Port {h.port}\n  HostKeyAlias {h.name}\n" for h in plan.hosts]
    files = (f"IdentityFile {layout.key}", f"UserKnownHostsFile {layout.known_hosts}")
    return "".join(named) + "Host *\n" + "".join(f"  {line}\n" for line in (*files, *_COMMON))


def inner_ssh_config(plan: Blueprint) -> str:
    """What ssh reads in the hosts, about the lab's hosts alone."""
    named = [f"Host {h.name}\n  HostName {h.address}\n  HostKeyAlias {h.name}\n" for h in plan.hosts]
    files = (f"IdentityFile {OWN}/id_ed25519", f"UserKnownHostsFile {OWN}/known_hosts")
    body = "".join(f"  {line}\n" for line in (*files, *_COMMON))
    return "".join(named) + f"Host {' '.join(h.name for h in plan.hosts)}\n{body}"


def ssh_wrapper(layout: Layout) -> str:
    """The program for `command=` of a libvirt URI (https://libvirt.org/uri.html, ssh transport) on this machine."""
    return f'#!/bin/sh\nexec ssh -F {layout.ssh_config} "$@"\n'


def known_hosts(plan: Blueprint, keys: dict[str, str]) -> str:
    """known_hosts: each host's public key under its name, and under the port of this machine that leads to it."""
    return "".join(f"{h.name},[127.0.0.1]:{h.port} {' '.join(keys[h.name].split()[:2])}\n" for h in plan.hosts)


def uri(kind: str, layout: Layout, host: HostPlan) -> str:
    """The libvirt URI of a host. Its `command` is there in the hosts too, so it means the same in all of them."""
    return f"{_SCHEMES[kind]}+ssh://root@{host.name}/system?command={quote(str(layout.ssh), safe='/')}"


def host_files(flavour: Flavour, layout: Layout, plan: Blueprint, host: HostPlan) -> dict[str, str]:
    """Files of a host that hold no key, by their path in it."""
    return {
        "etc/hostname": f"{host.name}\n",
        "etc/hosts": hosts_file(plan),
        "etc/machine-id": f"{host.machine_id}\n",
        "etc/ssh/ssh_config.d/vmkit-lab.conf": inner_ssh_config(plan),
        "etc/systemd/network/20-br0.network": bridge_network(host),
        "etc/libvirt/libvirtd.conf": f'host_uuid = "{host.uuid}"\n',
        f"{OWN[1:]}/dnsmasq.conf": dnsmasq_conf(plan),
        f"{OWN[1:]}/settings": settings(flavour, plan, host),
        str(layout.ssh)[1:]: '#!/bin/sh\nexec ssh "$@"\n',
        **({"usr/local/bin/vmkit": WRAPPER} if flavour.carries else {}),
        **flavour.files(plan, host),
    }


PROGRAMS: Final = ("usr/local/bin/vmkit", "ssh")
"""Last parts of the paths of those that are programs."""


def settings(flavour: Flavour, plan: Blueprint, host: HostPlan) -> str:
    """What templates/lab-nested/identity and the kind's own part of it read."""
    lines = {
        "BRIDGE_MAC": host.mac,
        "ADDRESS": f"{host.address}/{PREFIX}",
        "SHARE": "yes" if shared(plan) else "no",
        "DHCP": "yes" if host == plan.hosts[0] else "no",
        **flavour.settings(plan, host),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def shared(plan: Blueprint) -> bool:
    """Whether the hosts have one storage pool in common; a single host has its own, which is faster."""
    return len(plan.hosts) > 1


def hosts_file(plan: Blueprint) -> str:
    """/etc/hosts of every host. A host's own name leads to its bridge, since libvirt migrates to no 'localhost'."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{h.address} {h.name} {h.name}.{DOMAIN}" for h in plan.hosts]
    return "".join(f"{line}\n" for line in lines)


def bridge_network(host: HostPlan) -> str:
    """The address of the host's bridge (systemd.network(5))."""
    lines = [
        "[Match]",
        f"Name={BRIDGE}",
        "[Link]",
        "RequiredForOnline=no",
        "[Network]",
        f"Address={host.address}/{PREFIX}",
    ]
    return "\n".join([*lines, "LinkLocalAddressing=no", "ConfigureWithoutCarrier=yes", ""])


def dnsmasq_conf(plan: Blueprint) -> str:
    """dnsmasq(8) on the first host's bridge: DHCP for guests, names of hosts and guests. It asks nobody outside."""
    lines = [
        "keep-in-foreground",
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
        f"dhcp-range={DHCP[0]},{DHCP[1]},255.255.255.0,12h",
        "dhcp-option=option:router",
        "dhcp-leasefile=/run/vmkit-lab-leases",
        *(f"host-record={h.name},{h.name}.{DOMAIN},{h.address}" for h in plan.hosts),
    ]
    return f"# {SUBNET}\n" + "".join(f"{line}\n" for line in lines)
