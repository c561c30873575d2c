"""Copies on another host: what is decided before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.test_clone import DISK, FACTS
from vmkit.errors import ConflictError, RefusedError, UnsupportedError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.vm.clone import abroad
from vmkit.vm.clone.plan import CloneDesign

CAPABILITIES = """<capabilities><host><uuid>{uuid}</uuid></host><guest><os_type>hvm</os_type>
<arch name='x86_64'><domain type='{kind}'/></arch></guest></capabilities>"""
X86 = replace(FACTS, xml=FACTS.xml.replace("<os>", "<os><type arch='x86_64'>hvm</type>"))


@dataclass
class Somewhere:
    """A host as far as it is asked."""

    uuid: str = "two"
    kind: str = "qemu"
    driver: str = "QEMU"
    version: tuple[int, int, int] = (10, 0, 2)
    names: list[str] = field(default_factory=list)
    free: int = 1 << 40
    uri: str = "qemu+ssh://root@h2/system"

    def capabilities(self) -> str:
        return CAPABILITIES.format(uuid=self.uuid, kind=self.kind)

    def hypervisor_version(self) -> tuple[int, int, int]:
        return self.version

    def domains(self) -> list[Any]:
        return [SimpleNamespace(name=n) for n in self.names]


HERE = Somewhere("one", uri="qemu+ssh://root@h1/system")


@pytest.fixture(autouse=True)
def pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abroad, "ensure_pool", lambda host: SimpleNamespace(free=lambda: host.free))


def design(target: Somewhere, *names: str, facts: Any = X86) -> CloneDesign:
    return abroad.design(facts, cast("Host", HERE), cast("Host", target), names or ("web2",), None)


def test_a_running_vm_goes_on_there_and_one_that_is_off_is_fetched() -> None:
    live = design(Somewhere(), "web2", "web3")
    assert live.live
    assert [s.verb for s in live.plan.steps] == ["save", "send", "restore", "rename", "restore", "rename"]
    cold = design(Somewhere(), facts=replace(X86, state="shut off"))
    assert not cold.live
    assert [s.verb for s in cold.plan.steps] == ["fetch", "send", "define"]
    assert all(d.backing is None for c in cold.copies for d in c.disks)  # the image may not be there


@pytest.mark.parametrize(
    ("target", "facts", "kind", "text"),
    [
        (Somewhere("one"), X86, RefusedError, "is the host of web"),
        (Somewhere(names=["web2"]), X86, ConflictError, "there is a VM named web2"),
        (Somewhere(), replace(X86, domains=frozenset({"web", "web2"})), ConflictError, "there is a VM named web2"),
        (Somewhere(version=(8, 2, 0)), X86, UnsupportedError, r"saved by QEMU 10\.0\.2; 8\.2\.0 may not read it"),
        (Somewhere(kind="kvm"), X86, UnsupportedError, "a guest of the type qemu, which .* does not offer"),
        (Somewhere(driver="Xen"), X86, UnsupportedError, "is driven by Xen"),
        (Somewhere(free=1 << 20), X86, RefusedError, "no space"),
        (Somewhere(), replace(X86, disks=(DISK, replace(DISK, target="vdb"))), RefusedError, "several disks"),
        (Somewhere(), replace(X86, state="paused"), ConflictError, "web is paused"),
    ],
)
def test_what_cannot_be_there_is_refused(target: Somewhere, facts: Any, kind: type[VmkitError], text: str) -> None:
    with pytest.raises(kind, match=text):
        design(target, facts=facts)


def test_an_older_qemu_will_do_for_one_that_is_off() -> None:
    assert not design(Somewhere(version=(8, 2, 0)), facts=replace(X86, state="shut off")).live


def test_kernel_and_initrd_go_along() -> None:
    assert abroad.booted(X86) == ["/pool/k", "/pool/i"]
