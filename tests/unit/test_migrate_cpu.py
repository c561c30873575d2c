"""What of a guest's CPU is put to the target of a migration."""

from __future__ import annotations

from vmkit.hypervisor.migration import comparable_cpu

CPU = (
    "<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC</model>"
    "<feature policy='require' name='topoext'/><feature policy='require' name='svm'/></cpu>"
)


def test_kvm_shows_topoext_on_any_host() -> None:
    compared = comparable_cpu(CPU, "kvm")
    assert "topoext" not in compared
    assert "svm" in compared
    assert "EPYC" in compared


def test_emulation_is_compared_as_it_is() -> None:
    assert comparable_cpu(CPU, "qemu") == CPU
