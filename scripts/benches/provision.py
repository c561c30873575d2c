"""How long until the micro guest is ready: vmkit cold and warm, virt-install --import, and bare QEMU, with one image.

Everything runs on one host of a lab that is made for it (root is needed). 'Ready' is the same for all: the guest agent
answers, which in the micro guest it does once the network is set up; vmkit waits for the address besides.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measure import BenchError, Sample, output_of

SUMMARY = "micro guest from nothing to ready: vmkit cold and warm, virt-install --import, bare QEMU (needs root)"
LAB = "bench-provision"
DEADLINE = 600.0
BIN = Path(sys.executable).parent
LIMITS = (("vmkit create", 1.25), ("vmkit create --from-memory", 0.4))
"""Of bare QEMU's time, at most this many times as long, as the project promises it."""


def run(*, quick: bool, uri: str | None) -> dict[str, Any]:
    """Measure; returns rows, ratios and claims."""
    return compared("micro", [], 128, 5 if quick else 15, uri)


def compared(image: str, build: list[str], memory: int, runs: int, uri: str | None) -> dict[str, Any]:
    """Measure with one image, which `vmkit image build` makes with these arguments, and so many MiB of memory.

    The micro image is there in any case: its kernel proves whether KVM works.
    """
    if os.geteuid() != 0:
        raise BenchError("it makes a lab of its own: run as root")
    if uri is not None:
        raise BenchError("it measures on a host of its own: leave -c away")
    if not shutil.which("virt-install"):
        raise BenchError("virt-install is not installed: apt-get install virtinst")
    with tempfile.TemporaryDirectory(prefix="vmkit-bench-") as folder:
        environment = {**os.environ, "VMKIT_HOME": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        vmkit = [str(BIN / "vmkit")]
        _say(f"building the image {image}, and a lab ...")
        _call([*vmkit, "image", "build", "micro"], environment)
        if build:
            _call([*vmkit, "image", "build", *build], environment)
        _call([*vmkit, "lab", "up", "pair", "--name", LAB], environment)
        try:
            inside = [sys.executable, str(Path(__file__).resolve()), image, str(runs), str(memory), folder]
            done = _call([*vmkit, "lab", "exec", f"{LAB}/h1", "--", *inside], environment, timeout=3600)
        finally:
            _call([*vmkit, "lab", "down", LAB], environment)
    times: dict[str, list[float]] = json.loads(done)
    samples = {name: Sample.of(name, seconds) for name, seconds in times.items()}
    # Within each round, so that what the machine does meanwhile to others' work counts for all ways alike.
    bare = times["bare QEMU"]
    ratios = {n: statistics.median(a / b for a, b in zip(t, bare, strict=True)) for n, t in times.items()}
    return {
        "uri": "a host of a lab",
        "versions": {
            "vmkit": output_of([str(BIN / "vmkit"), "--version"]),
            "libvirt": output_of(["virsh", "--version"]),
            "QEMU": output_of(["qemu-system-x86_64", "--version"]).splitlines()[0].split("version ")[-1],
            "virt-install": output_of(["virt-install", "--version"]),
        },
        "unit": "ms",
        "relative": "bare QEMU",
        "rows": [{**s.plain(), "relative": round(ratios[name], 2)} for name, s in samples.items()],
        "claims": [_claim(name, ratios[name], limit) for name, limit in LIMITS],
    }


def _claim(name: str, ratio: float, limit: float) -> dict[str, Any]:
    text = f"{name} is ready in at most {limit:g} x the time of bare QEMU (median of the rounds' ratios)"
    return {"claim": text, "ratio": round(ratio, 2), "holds": ratio <= limit}


def _call(argv: list[str], environment: dict[str, str], timeout: float = 900) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment, timeout=timeout, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"'{' '.join(argv)}' failed with {done.returncode}")
    return done.stdout


# -- what follows runs inside the lab's host


def inside(image: str, runs: int, memory: int, home: Path) -> dict[str, list[float]]:
    """Measure each way in rounds; seconds of each run. Each round begins with another way; the first is a warm-up."""
    scratch = home / "scratch"
    scratch.mkdir()
    host = Host(home, scratch, image, memory)
    _say("booting the guest whose memory the warm start begins from ...")
    with host.source():
        ways: dict[str, Callable[[], Any]] = {
            "bare QEMU": host.bare,
            "virt-install --import": host.virt_install,
            "vmkit create": lambda: host.vmkit("--image", image, "--memory", f"{memory}M", "--nic", "lab"),
            "vmkit create --from-memory": lambda: host.vmkit("--from-memory", "warm"),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        names = list(ways)
        for i in range(1 + runs):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                start = time.perf_counter()
                with ways[name]():
                    took = time.perf_counter() - start
                if i:
                    times[name].append(took)
                _say(f"round {i} of {runs}{'' if i else ' (warm-up)'}: {name} {took:.1f} s")
    return times


class Host:
    """The lab's host, as the ways see it."""

    def __init__(self, home: Path, scratch: Path, image: str, memory: int) -> None:
        self.scratch = scratch
        self.image = image
        self.memory = memory
        self.program = str(BIN / "vmkit")
        self.pool = home / "lab" / LAB / "pool"
        folder = home / "images" / image
        manifest = json.loads((folder / "manifest.json").read_text())
        self.files = {part: folder / manifest[part]["file"] for part in ("kernel", "initrd", "disk")}
        self.cmdline = manifest["cmdline"]
        self.mac = "52:54:00:be:0c:01"
        self.seed: Path | None = None

    @contextmanager
    def source(self) -> Iterator[None]:
        """The image of a memory that the warm way starts from; what cloud-init read there is for the other ways too."""
        nic = ["--image", self.image, "--memory", f"{self.memory}M", "--nic", f"lab,mac={self.mac}"]
        self._do(self.program, "create", "source", *nic, "--wait", "--deadline", "600s")
        if (made := self.pool / "source-seed.iso").exists():
            self.seed = Path(shutil.copy(made, self.scratch / "seed.iso"))
        self._do(self.program, "image", "from-vm", "source", "--name", "warm")
        self._do(self.program, "delete", "--force", "source")
        yield

    @contextmanager
    def vmkit(self, *what: str) -> Iterator[None]:
        """`vmkit create --wait`: it ends when the guest is ready."""
        self._do(self.program, "create", "guest", *what, "--wait", "--deadline", "600s")
        yield
        self._do(self.program, "delete", "--force", "guest")

    @contextmanager
    def virt_install(self) -> Iterator[None]:
        """virt-install, then the agent is asked until it answers."""
        import libvirt
        import libvirt_qemu

        libvirt.registerErrorHandler(lambda *_: None, None)
        disk = self._overlay()
        seed = ["--disk", f"path={self.seed},bus=virtio,readonly=on,driver.type=raw"] if self.seed else []
        boot = f"kernel={self.files['kernel']},initrd={self.files['initrd']},kernel_args={self.cmdline}"
        self._do(
            *("virt-install", "--import", "--name", "guest", "--memory", str(self.memory), "--vcpus", "1"),
            *("--virt-type", "qemu", "--osinfo", "detect=off,require=off", "--machine", "q35"),
            *("--disk", f"path={disk},bus=virtio", *seed, "--graphics", "none"),
            *("--network", f"network=lab,model=virtio,mac={self.mac}"),
            *("--channel", "unix,target.type=virtio,target.name=org.qemu.guest_agent.0", "--rng", "/dev/urandom"),
            *("--boot", boot, "--noautoconsole", "--quiet"),
        )
        connection = libvirt.open("qemu:///system")
        domain = connection.lookupByName("guest")

        def answers() -> bool:
            try:
                libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', 2, 0)
            except libvirt.libvirtError:
                return False
            return True

        _until(answers)
        yield
        domain.destroy()
        domain.undefine()
        connection.close()
        disk.unlink()

    @contextmanager
    def bare(self) -> Iterator[None]:
        """QEMU with the devices that the guest needs, and no more."""
        disk, agent = self._overlay(), self.scratch / "agent"
        seed = ["-drive", f"file={self.seed},if=virtio,format=raw,readonly=on"] if self.seed else []
        argv = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
            *("-accel", "tcg", "-m", f"{self.memory}M", "-smp", "1", "-append", self.cmdline),
            *("-kernel", str(self.files["kernel"]), "-initrd", str(self.files["initrd"])),
            *("-drive", f"file={disk},if=none,id=d0,format=qcow2", "-device", "virtio-blk-pci,drive=d0"),
            *(*seed, "-netdev", "user,id=n0", "-device", f"virtio-net-pci,netdev=n0,romfile=,mac={self.mac}"),
            *("-device", "virtio-rng-pci", "-serial", f"file:{self.scratch / 'console'}"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=ga,path={agent},server=on,wait=off"),
            *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
        ]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            _until(lambda: _pong(agent))
            yield
        finally:
            process.kill()
            process.wait()
            disk.unlink()
            agent.unlink(missing_ok=True)

    def _overlay(self) -> Path:
        disk = self.scratch / "disk.qcow2"
        base = ["-b", str(self.files["disk"]), "-F", "qcow2"]
        self._do("qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk))
        return disk

    def _do(self, *argv: str) -> None:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            raise BenchError(f"'{' '.join(argv)}' failed: {done.stderr.strip()[-500:]}")


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _until(probe: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not probe():
        if time.monotonic() > end:
            raise BenchError(f"the guest was not ready within {DEADLINE:g} s")
        time.sleep(0.02)


def _pong(path: Path) -> bool:
    """Whether the agent behind a socket answers. What is sent before it is up waits for it in QEMU."""
    with ExitStack() as stack:
        s = stack.enter_context(socket.socket(socket.AF_UNIX))
        s.settimeout(1.0)
        try:
            s.connect(str(path))
            s.sendall(b'{"execute": "guest-ping"}\n')
            return b'"return"' in s.recv(4096)
        except OSError:
            return False


if __name__ == "__main__":
    try:
        print(json.dumps(inside(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
    except BenchError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(4)
