"""Migrations of VMs that are not as most are: transient, defined on both hosts, ended on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qemu.mover import jobs
from vmkit.client import Client
from vmkit.errors import CancelledError, EffectError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import adopt, find, forget
from vmkit.lab.api import Lab

XML = """
<domain type='qemu'>
  <name>odd</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><serial type='pty'/></devices>
</domain>
"""


@pytest.fixture
def hosts(pair: Lab) -> Iterator[tuple[Host, Host]]:
    """Both hosts, without a domain named odd before and after."""
    with Host.connect(pair.hosts[0].uri) as one, Host.connect(pair.hosts[1].uri) as two:
        try:
            yield one, two
        finally:
            for host in (one, two):
                if domain := find(host, name="odd"):
                    if domain.state().active:
                        domain.destroy()
                    if domain.exists():
                        domain.undefine()


def state(host: Host) -> DomainState | None:
    domain = find(host, name="odd")
    return None if domain is None else domain.state()


def started(host: Host) -> Domain:
    domain = adopt(host, XML)
    domain.start()
    return domain


def test_a_transient_domain_stays_transient(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.create_transient(XML)
    with Client(one.uri) as client:
        report = client.migrations.migrate("odd", two.uri)
    assert (report.running_copies, report.definition_moved) == (1, False)
    assert state(one) is None
    assert not two.domain("odd").persistent


def test_the_target_holds_an_old_definition_of_the_vm(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    domain = started(one)
    adopt(two, domain.xml(inactive=True, secure=True).replace("</name>", "</name><title>old</title>", 1))
    with Client(one.uri) as client:
        with pytest.raises(CancelledError):  # a migration that does not come about leaves that definition alone
            client.migrations.migrate("odd", two.uri, cancelled=lambda: True, bandwidth=2**20)
        assert (state(one), state(two)) == (DomainState.RUNNING, DomainState.SHUTOFF)
        assert client.migrations.migrate("odd", two.uri).running_copies == 1
    assert (state(one), state(two)) == (None, DomainState.RUNNING)
    assert two.domain("odd").persistent
    assert "<title>old" not in two.domain("odd").xml(inactive=True)


def test_the_guest_ends_on_the_way(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    domain = started(one)

    def pull_the_plug() -> bool:
        if domain.state().active and (job := domain.job()) and job.processed:
            domain.destroy()
        return False

    with Client(one.uri) as client, pytest.raises(EffectError, match="the guest ended at the source"):
        client.migrations.migrate("odd", two.uri, cancelled=pull_the_plug, bandwidth=2**20)
    assert (state(one), state(two)) == (DomainState.SHUTOFF, None)
    assert jobs() == []


def test_an_error_of_the_calling_program_ends_it_in_order(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    started(one)

    def defect() -> bool:
        raise ZeroDivisionError("of the caller's own")

    with Client(one.uri) as client, pytest.raises(CancelledError, match="ZeroDivisionError"):
        client.migrations.migrate("odd", two.uri, cancelled=defect, bandwidth=2**20)
    assert (state(one), state(two)) == (DomainState.RUNNING, None)
    assert jobs() == []


def test_a_definition_can_be_forgotten_alone(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    domain = started(one)
    forget(domain)
    assert domain.state() is DomainState.RUNNING
    assert not domain.persistent


def test_lab_hosts_share_what_they_say_they_share(pair: Lab, hosts: tuple[Host, Host]) -> None:
    from vmkit.migrate.facts import Presence, presence
    from vmkit.migrate.files import GuestFile

    one, two = hosts
    volume = (
        "<volume><name>probe.raw</name><capacity unit='MiB'>1</capacity><target><format type='raw'/></target></volume>"
    )
    pool = one.pool("vmkit")
    path = pool.create(volume)
    try:
        assert presence(one, two, GuestFile(path, "disk")) is Presence.SAME
        assert presence(one, two, GuestFile(path + ".none", "disk")) is Presence.ABSENT
        assert presence(one, two, GuestFile("/no/pool/covers/this", "disk")) is Presence.UNKNOWN
    finally:
        pool.delete("probe.raw")
