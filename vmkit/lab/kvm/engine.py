"""Which QEMU and which accelerator run nested hosts on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vmkit.errors import UnsupportedError, VmkitError
from vmkit.lab.kvm.command import sound_smp
from vmkit.lab.kvm.options import LOW_MEMORY, KvmOptions
from vmkit.lab.nested import emulator, older
from vmkit.lab.nested.hardware import Engine
from vmkit.progress import Note, Reporter

_MODULES: Final = ("kvm_amd", "kvm_intel")


def choose_engine(options: KvmOptions, reporter: Reporter) -> tuple[Engine, str]:
    """What runs the hosts, and why.

    Raises:
        UnsupportedError: QEMU is not installed or too old, or cannot do what is asked for.
        RefusedError: an older QEMU has to be fetched, and that needs root or space.
        EffectError: that failed.
    """
    engine, reason = _choose(options, reporter)
    if (options.vcpus or 1) > 1 and not sound_smp(engine):
        raise UnsupportedError(
            f"a host of several vCPUs does not live long on the emulation of QEMU {emulator.dotted(engine.version)}",
            hint="leave --vcpus out, or give it 1",
        )
    return engine, reason


def _choose(options: KvmOptions, reporter: Reporter) -> tuple[Engine, str]:
    binary, version = emulator.find()
    accel, reason = _accel(reporter)
    if options.shadow and accel == "tcg" and version[:2] != (7, 2):
        # QEMU 8 to 10 emulate SVM so that a guest on shadow page tables resets at the entry of its kernel.
        if options.sriov:
            raise UnsupportedError(
                "without KVM here, shadow paging in the host wants QEMU 7.2 around it, which has no SR-IOV card",
                hint="make two labs: vmkit lab up kvm --sriov; vmkit lab up kvm --name shadow --shadow",
            )
        return older.engine("shadow paging", reporter), reason
    if options.sriov and version < (8, 0):
        raise UnsupportedError(
            f"the SR-IOV card came with QEMU 8.0, and this is {emulator.dotted(version)}",
            hint="scripts/setup installs a newer one",
        )
    if options.sriov and (10, 0) <= version < (10, 0, 3) and options.memory >= LOW_MEMORY:
        # Measured with 10.0.2: the functions' registers are mapped where none are, and they never get a carrier.
        raise UnsupportedError(
            f"QEMU {emulator.dotted(version)} cannot give a host of {options.memory} virtual functions that work",
            hint=f"--memory 2752M, or anything else below {LOW_MEMORY}; or QEMU 10.0.3 or newer",
        )
    return Engine(binary, version, accel), reason


def _accel(reporter: Reporter) -> tuple[str, str]:
    """'kvm' only where KVM has proved itself here and can be nested; and why."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "there is no /dev/kvm that this user may open"
    for module in _MODULES:
        nested = Path(f"/sys/module/{module}/parameters/nested")
        if nested.exists():
            break
    else:
        return "tcg", "/dev/kvm is not backed by kvm_amd or kvm_intel, so hosts on it could not be KVM hosts"
    if nested.read_text().strip() not in ("1", "Y"):
        mend = f"modprobe -r {module}; modprobe {module} nested=1"
        reporter(Note(f"KVM is here, but not nested; with it hosts would be several times as fast: {mend}"))
        return "tcg", f"{nested} is off"
    return _proved(module)


def _proved(module: str) -> tuple[str, str]:
    """The verdict of the probe guest, if libvirt on this machine can run it."""
    from vmkit.hypervisor.host import Host
    from vmkit.vm.kvm import prove

    try:
        with Host.connect("qemu:///system") as host:
            fact = prove(host)
    except VmkitError as e:
        return "tcg", f"KVM could not be proved: {e.message}"
    if not fact.works:
        return "tcg", fact.reason
    return "kvm", f"{fact.reason}, and {module} is nested"
