"""Does KVM really run a guest on this host?

That /dev/kvm opens, and that libvirt offers KVM, says less than one would think: nested and software KVM may create a
VM and then never get it through the boot of its kernel. So a small guest is started on KVM and, beside it, on TCG.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.errors import VmkitError
from vmkit.host import cache
from vmkit.host.verdict import PROBE_DEADLINE, KvmVerdict, Runner, judge
from vmkit.hypervisor.console import ConsoleStream
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.progress import Advanced, Finished, Reporter, Started, silent
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.files import home, locked

ARCH: Final = "x86_64"
MARKER: Final = b"vmkit-micro: kernel up"
"""What templates/micro/init writes first."""
CMDLINE: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check cryptomgr.notests vmkit.probe=1"
)
MEMORY_MIB: Final = 192
STEP: Final = "kvm probe"


def probe_kvm(host: Host, kernel: str, initrd: str, reporter: Reporter = silent) -> KvmVerdict:
    """Find out whether KVM runs guests on a host, or recall it if this was found out since the host booted.

    Takes at worst twice the time that a small guest needs to boot under TCG (seldom over 8 s), 180 s if neither boots.
    The two guests are transient and end with the probe, also if the caller dies.

    Args:
        host: where.
        kernel: path of the micro image's kernel on that host.
        initrd: path of its initramfs there.
        reporter: told that it goes on.

    Raises:
        UnreachableError: the host went away.
        RefusedError: the verdict cannot be kept on this machine.
    """
    uuid, offered = _capabilities(host.capabilities())
    if not offered:
        return KvmVerdict(False, "libvirt offers no KVM here (no /dev/kvm, or the kvm modules are not loaded)", 0.0)
    boot = cache.boot_of(host)
    if known := cache.recall(uuid, boot):
        return known
    lock = home() / "cache" / f"kvm-probe-{uuid}.lock"
    with locked(lock, busy="another process probes KVM on this host", wait=PROBE_DEADLINE + 30):
        if known := cache.recall(uuid, boot):
            return known
        reporter(Started(STEP, "does KVM run guests here?"))
        # A connection of its own: consoles need the event loop, and the guests end when it closes.
        with Host.connect(host.uri, events=True) as own:
            verdict = _race(own, kernel, initrd, reporter)
        cache.remember(uuid, boot, verdict)
    reporter(Finished(STEP, verdict.seconds, verdict.reason))
    return verdict


def known_verdict(host: Host) -> KvmVerdict | None:
    """What a probe found out since the host booted; None if there was none. Nothing is started or written."""
    uuid, _ = _capabilities(host.capabilities())
    return cache.recall(uuid, cache.boot_of(host))


def _capabilities(xml: str) -> tuple[str, bool]:
    """UUID of the host, and whether libvirt offers KVM for the probe's architecture."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    offered = root.find(f"guest/arch[@name='{ARCH}']/domain[@type='kvm']") is not None
    return root.findtext("host/uuid", "").strip(), offered


def _race(host: Host, kernel: str, initrd: str, reporter: Reporter) -> KvmVerdict:
    seconds = stopwatch()
    changed = threading.Event()
    deadline = Deadline(PROBE_DEADLINE + 10)
    with contextlib.ExitStack() as stack:
        # TCG first: libvirt's call takes a while, and a broken KVM may keep a processor busy.
        tcg = stack.enter_context(_Guest(host, "qemu", kernel, initrd, changed.set))
        kvm = stack.enter_context(_Guest(host, "kvm", kernel, initrd, changed.set))
        while True:
            if verdict := judge(kvm.look(), tcg.look(), seconds()):
                return verdict
            deadline.check("the probe of KVM")
            reporter(Advanced(STEP, seconds(), None, "waiting for two small guests"))
            changed.wait(0.2)
            changed.clear()


class _Guest:
    """A transient probe guest. Leaving the block ends it."""

    def __init__(self, host: Host, kind: str, kernel: str, initrd: str, wake: Callable[[], None]) -> None:
        self._age = stopwatch()
        self._wake = wake
        self._tail = b""
        self._booted: float | None = None
        self._failed: str | None = None
        self._domain: Domain | None = None
        self._console: ConsoleStream | None = None
        try:
            self._domain = host.create_transient(_xml(kind, kernel, initrd), autodestroy=True)
            self._console = ConsoleStream(self._domain, self._read)
        except VmkitError as e:
            self._failed = e.message

    def __enter__(self) -> _Guest:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._console:
            self._console.close()
        if self._domain:
            with contextlib.suppress(VmkitError):  # it may have gone by itself
                self._domain.destroy()

    def _read(self, data: bytes) -> None:
        """In libvirt's event thread."""
        self._tail = (self._tail + data)[-4096:]
        if self._booted is None and MARKER in self._tail:
            self._booted = self._age()
        self._wake()

    def look(self) -> Runner:
        """How it stands now."""
        if self._booted is None and self._failed is None and self._domain is not None:
            with contextlib.suppress(VmkitError):
                if not self._domain.exists() and self._booted is None:
                    self._failed = f"it ended after {self._age():.1f} s without a line from user space"
        return Runner(self._age(), self._booted, self._failed)


def _xml(kind: str, kernel: str, initrd: str) -> str:
    """The smallest domain that boots a kernel. `kind` is the domain type, 'kvm' or 'qemu'."""
    root = ET.Element("domain", type=kind)
    ET.SubElement(root, "name").text = f"vmkit-probe-{kind}-{secrets.token_hex(3)}"
    ET.SubElement(root, "memory", unit="MiB").text = str(MEMORY_MIB)
    ET.SubElement(root, "vcpu").text = "1"
    os = ET.SubElement(root, "os")
    ET.SubElement(os, "type", arch=ARCH, machine="q35").text = "hvm"
    ET.SubElement(os, "kernel").text = kernel
    ET.SubElement(os, "initrd").text = initrd
    ET.SubElement(os, "cmdline").text = CMDLINE
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        ET.SubElement(root, event).text = "destroy"
    devices = ET.SubElement(root, "devices")
    # q35 gets a USB controller and a balloon from libvirt unless told otherwise; each costs boot time.
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
    for element in ("serial", "console"):
        ET.SubElement(devices, element, type="pty")
    return ET.tostring(root, encoding="unicode")
