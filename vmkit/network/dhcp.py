"""Giving back what a DHCP server has lent to a VM that is gone, in the VM's name (RFC 2131, 4.4.6)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from vmkit.errors import VmkitError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.network import Lease
from vmkit.network.facts import NetworkFacts
from vmkit.system.shell import Shell

_DEADLINE: Final = 20.0
_SEND: Final = """
import socket, struct, sys
device, server, *pairs = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 25, device.encode() + b"\\0")
for pair in pairs:
    address, mac = pair.split("/")
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 1, 0, 0)
    body = socket.inet_aton(address) + bytes(12) + bytes.fromhex(mac.replace(":", "")) + bytes(202)
    options = b"\\x63\\x82\\x53\\x63\\x35\\x01\\x07\\x36\\x04" + socket.inet_aton(server) + b"\\xff"
    s.sendto(head + body + options, (server, 67))
"""
"""DHCPRELEASE for each ADDRESS/MAC, as if it came from the bridge: 25 is SO_BINDTODEVICE (Linux' asm/socket.h). A
message is 240 bytes of fixed fields, then options: 53 the type, 54 the server."""


def give_back(host: Host, known: NetworkFacts, leases: Sequence[Lease]) -> bool:
    """Have a network's DHCP server forget leases; False where the host has no python3 to say so, or is out of reach."""
    if host.driver != "QEMU" or not known.bridge or not known.gateway:
        return False
    pairs = [f"{lease.address}/{lease.mac}" for lease in leases if ":" not in lease.address]
    argv = ["python3", "-c", _SEND, known.bridge, known.gateway, *pairs]
    try:
        done = Shell.of_uri(host.uri).run_script(shlex.join(argv) + " && echo sent\n", timeout=_DEADLINE)
    except VmkitError:
        return False
    return "sent" in done.stdout.split()
