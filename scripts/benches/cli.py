"""How long the command line takes to answer: vmkit, virsh, kcli, virt-install, and the bare interpreter under vmkit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import BenchError, Sample, interleaved, output_of

SUMMARY = "start-up and list of the command line, beside virsh, kcli and virt-install"
DEFAULT_URI = "test:///default"
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
"""`kcli version` asks a web site for a newer one; it gets a refusal at once, so that no network is timed."""

BIN = Path(sys.executable).parent
LIMITS = (
    # vmkit list against, at most this many times as long, as the project promises it
    ("virsh list", 10.0),
    ("kcli version", 1 / 1.4),
    ("virt-install --version", 1 / 1.4),
)


def run(*, quick: bool, uri: str | None) -> dict[str, Any]:
    """Measure; returns rows, ratios and claims."""
    uri = uri or DEFAULT_URI
    kcli, virt_install = _kcli(), _virt_install()
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "virsh list": ["virsh", "-c", uri, "list"],
        "vmkit --help": [str(BIN / "vmkit"), "--help"],
        "vmkit list": [str(BIN / "vmkit"), "-c", uri, "list"],
        "virt-install --version": [virt_install, "--version"],
        "kcli version": [kcli, "version"],
    }
    samples = interleaved(commands, runs=5 if quick else 20, env={**NO_NETWORK, "LC_ALL": "C.UTF-8"})
    ours = samples["vmkit list"].median
    claims = [_claim(samples[name], ours, limit) for name, limit in LIMITS]
    return {
        "uri": uri,
        "versions": {
            "vmkit": output_of([str(BIN / "vmkit"), "--version"]),
            "libvirt": output_of(["virsh", "--version"]),
            "virt-install": output_of([virt_install, "--version"]),
            "kcli": output_of([str(Path(kcli).parent / "python"), "-c", _VERSION]),
        },
        "unit": "ms",
        "relative": "vmkit list",
        "rows": [{**s.plain(), "relative": round(s.median / ours, 2)} for s in samples.values()],
        "claims": claims,
    }


_VERSION = "import importlib.metadata as m; print(m.version('kcli'))"


def _claim(other: Sample, ours: float, limit: float) -> dict[str, Any]:
    ratio = ours / other.median
    text = f"at most {limit:g} x" if limit >= 1 else f"at least {1 / limit:g} x faster than"
    return {"claim": f"vmkit list is {text} {other.name}", "ratio": round(ratio, 2), "holds": ratio <= limit}


def _virt_install() -> str:
    if found := shutil.which("virt-install"):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BenchError("virt-install is not installed: apt-get install virtinst")
    print("bench: installing Debian's package virtinst, as the thing to compare with ...", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["update"], ["install", "-y", "--no-install-recommends", "virtinst"]):
        done = subprocess.run(["apt-get", "-q", *argv], capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise BenchError(f"apt-get {argv[0]} failed: {done.stderr.strip()[-300:]}")
    found = shutil.which("virt-install")
    if not found:
        raise BenchError("the package virtinst has brought no virt-install")
    return found


def _kcli() -> str:
    """Kcli in a virtual environment of its own, kept in the cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    venv = cache / "vmkit-bench" / "kcli"
    program = venv / "bin" / "kcli"
    if output_of([str(program), "version"], env=NO_NETWORK):
        return str(program)
    print(f"bench: installing kcli from PyPI into {venv}, as the thing to compare with ...", file=sys.stderr)
    for argv in (
        ["/usr/bin/python3", "-m", "venv", "--clear", str(venv)],
        [f"{venv}/bin/pip", "install", "-q", "kcli"],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"'{' '.join(argv)}' failed: {done.stderr.strip()[-300:]}")
    return str(program)
