"""What was plugged into a guest, and whether the guest uses it."""

from __future__ import annotations

from typing import Any, cast

from vmkit.hypervisor.domain import Domain
from vmkit.vm.change import plug

NEVER = 0.05
"""Seconds for what does not come."""


class Guest:
    """A VM with two vCPUs and one more block of memory than before, whose kernel knows of so many."""

    name = "v"

    def __init__(self, *, vcpus: int, blocks: int = 2, kind: str = "qemu") -> None:
        self.vcpus = [{"logical-id": i, "online": i == 0} for i in range(vcpus)]
        self.blocks = [{"phys-index": i, "online": True} for i in range(blocks)]
        self.kind = kind

    def xml(self, **_: Any) -> str:
        return f"<domain type='{self.kind}'><vcpu current='2'>4</vcpu><memory>1024</memory></domain>"

    def agent(self, command: str, arguments: dict[str, Any] | None = None, *, timeout: int) -> Any:
        assert timeout > 0
        match command:
            case "guest-get-vcpus":
                return [dict(v) for v in self.vcpus]
            case "guest-set-vcpus":
                assert arguments
                for wanted in arguments["vcpus"]:
                    self.vcpus[wanted["logical-id"]]["online"] = wanted["online"]
            case "guest-get-memory-blocks":
                return self.blocks
        return {}


def online(guest: Guest, *, vcpus: bool = True, blocks: int | None = 0, seconds: float = NEVER) -> str | None:
    return plug.bring_online(cast("Domain", guest), vcpus=vcpus, blocks=blocks, seconds=seconds)


def test_vcpus_that_the_kernel_knows_are_put_to_use() -> None:
    guest = Guest(vcpus=2)
    assert online(guest, seconds=30) is None
    assert all(v["online"] for v in guest.vcpus)


def test_an_emulated_vcpu_that_the_kernel_does_not_know_is_there_after_a_reboot() -> None:
    text = online(Guest(vcpus=1))
    assert text
    assert "sees 1 of its 2 vCPUs" in text
    assert text.endswith("vmkit reboot v")


def test_under_kvm_the_guest_is_to_be_told() -> None:
    text = online(Guest(vcpus=1, kind="kvm"))
    assert text
    assert "has not taken up 2 vCPUs" in text
    assert "reboot" not in text
    assert "/sys/devices/system/cpu" in text


def test_memory_is_put_to_use_though_a_vcpu_is_not_seen() -> None:
    guest = Guest(vcpus=1, blocks=2)
    text = online(guest, blocks=2)
    assert text
    assert "memory" not in text
    text = online(guest, blocks=3)
    assert text
    assert "vmkit reboot v" in text
    assert "has not taken up its memory" in text
    assert "/sys/devices/system/memory" in text


def test_an_agent_that_does_not_say_how_much_memory_there_was() -> None:
    text = online(Guest(vcpus=2), blocks=None)
    assert text
    assert "does not answer" in text
    assert "/sys/devices/system/cpu" in text
    assert "/sys/devices/system/memory" in text
