"""What mends the errors of libvirt and QEMU that users meet most. Pure.

The texts are those of libvirt 9.0 to 11.3 and QEMU 7.2 to 10.0. libvirtd translates its own where its locale says so: a
text that is not recognised has no advice, and does no harm.
"""

from __future__ import annotations

import re
from typing import Final

_TABLE: Final = (
    # disks
    (r'Failed to get (?:shared )?"?\w*"? ?lock|Is another process using the image',
     "another VM or program has this disk open: vmkit list shows what runs, fuser -v FILE who has the file"),
    (r"Cannot access (?:storage|backing) file '([^']+)'.*No such file",
     "{1} is gone: put it back, or see what the VM is made of: vmkit show {vm}"),
    (r"Cannot access storage file '([^']+)'.*Permission denied",
     "the user that QEMU runs as cannot read {1}, or cannot go through a folder above it: namei -l {1}"),
    (r"Could not open '?([^':]+)'?: Permission denied",
     "QEMU may not open {1}: see its owner (ls -l), and AppArmor or SELinux: journalctl -k -g denied"),
    (r"Could not open '?([^':]+)'?: No such file",
     "{1} is gone: put it back, or see what the VM is made of: vmkit show {vm}"),
    (r"No space left on device|not enough free space",
     "make room on the host: df -h, vmkit image list, vmkit list -o wide"),
    (r"storage pool '?([^' ]*)'? ?(?:containing volume .* )?is not active", "start it: virsh pool-start {1}"),
    (r"Storage volume not found|no storage vol with matching", "it was deleted by another tool: vmkit show {vm}"),
    # networks
    (r"network '([^']+)' is not active", "start it: virsh net-start {1}"),
    (r"Network not found|no network with matching", "see what there is: vmkit network list"),
    (r"(?:Unable to get index for|Cannot get) interface (?:\w+ on )?'?([\w.-]+?)'?[: ].*No such device",
     "the host has no interface {1}: ip link shows what it has"),
    (r"Unable to create tap device", "a tap device needs root and /dev/net/tun: run as root, or take --nic user"),
    # memory and CPUs
    (r"[Cc]annot set up guest memory|[Cc]annot allocate memory|unable to map backing store",
     "the host has too little memory free (or too few huge pages): stop a VM, or give this one less; vmkit doctor"),
    (r"Could not access KVM kernel module", "/dev/kvm cannot be used: vmkit doctor says why; --accel tcg does without"),
    (r"guest and host CPU are not compatible|[Ii]ncompatible with host CPU|doesn't match host CPU|missing features:",
     "the host's CPU lacks what this VM was made with: make it with --cpu auto, or take another host; vmkit doctor"),
    (r"[Uu]nsupported machine type|does not support machine type|Emulator .* does not support",
     "this host's QEMU does not know the VM's machine type: vmkit doctor shows its version"),
    # the guest agent
    (r"[Gg]uest agent is not (?:connected|available|responding)|guest agent command timed out",
     "see how far the guest is: vmkit wait {vm} --for agent, vmkit console {vm}"),
    (r"guest agent is not configured",
     "the VM was made without the channel for a guest agent; vmkit gives each VM one"),
    (r"The command [\w-]+ has(?: not been found| been disabled)|[Cc]ommand [\w-]+ has been disabled",
     "the guest's agent does not allow it: see its configuration, /etc/qemu/qemu-ga.conf in the guest"),
    # other operations
    (r"cannot acquire state change lock",
     "another operation works on the VM: vmkit jobs; if that shows none, libvirt waits for QEMU: vmkit show {vm}"),
    (r"domain is not running|[Dd]omain .* is not (?:running|active)", "vmkit start {vm}"),
    (r"domain is already running|VM is already active", "it runs already: vmkit show {vm}"),
    (r"already in active block job|has active block job|another (?:backup|migration) job is already running",
     "wait for what works on the VM, or end it: vmkit jobs; virsh domjobinfo {vm} shows what libvirt knows"),
    (r"cannot delete inactive domain with \d+ (?:checkpoints|snapshots)", "vmkit delete {vm} removes them with it"),
    # devices
    (r"PCI device ([\w:.]+) is (?:already )?in use by driver [^,]+, domain ([\w.-]+)",
     "{2} has it: vmkit device detach {2} {1}, or stop that VM"),
    (r"vfio .*(?:not viable|group)|VFIO",
     "vmkit device list shows IOMMU groups and drivers; vmkit doctor what is missing"),
    (r"No more available PCI slots",
     "all ports for devices are taken: stop the VM, and it gets new ones at its next start: vmkit stop {vm}"),
    # the connection and libvirtd
    (r"Failed to connect socket to '([^']*monitor[^']*)'", "QEMU ended while it started: vmkit log {vm}"),
    (r"process exited while connecting to monitor|unexpectedly quit while processing",
     "QEMU ended while it started; what it said in full is on the host: /var/log/libvirt/qemu/{vm}.log"),
    (r"[Cc]annot recv data|End of file while reading data|client socket is closed|[Cc]onnection reset",
     "the connection broke: see that libvirtd runs on the host (journalctl -u libvirtd), and try again"),
    (r"Unable to read from monitor|Monitor (?:is closed|closed)|End of file from qemu monitor",
     "QEMU ended meanwhile: vmkit show {vm}, vmkit log {vm}, and on the host /var/log/libvirt/qemu/{vm}.log"),
    (r"(?:not supported|not available) (?:by|in|with) (?:this )?(?:QEMU|hypervisor)",
     "vmkit doctor shows the versions of QEMU and libvirt, and what they lack"),
)  # fmt: skip
_COMPILED: Final = tuple((re.compile(pattern), hint) for pattern, hint in _TABLE)
_SUBJECT: Final = re.compile(r" of ([A-Za-z0-9][A-Za-z0-9._-]{0,62})\Z")


def advice(text: str, what: str = "") -> str | None:
    """The next step after an error; None where there is none worth naming.

    Args:
        text: what libvirt or QEMU said, in one line.
        what: the step that failed, as in 'start of web1'.
    """
    subject = _SUBJECT.search(what)
    for pattern, hint in _COMPILED:
        if match := pattern.search(text):
            return hint.format("", *(part or "" for part in match.groups()), vm=subject[1] if subject else "NAME")
    return None
