"""What carries a migration, for real: straight, by TLS, and through a tunnel of ssh, and what is left of the tunnel.

And what it carries: a connection to the guest that is open meanwhile.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.authority import Authority, pem
from tests.qemu.mover import Mover, jobs, vmkit
from tests.qemu.talker import PORT, Transfer
from vmkit.client import Client
from vmkit.errors import RefusedError
from vmkit.hypervisor.domain import Domain
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.tunnel import FOLDER, congestion_controls

LIMIT = "24M"
FOLDER_OF_TLS = "etc/libvirt/pki"


@pytest.fixture(scope="module")
def mover(pair: Lab, micro: Image) -> Iterator[Mover]:
    vm = Mover(pair, "carried", pair.hosts[0].static[0].rpartition(".")[0] + ".207")
    vm.create()
    yield vm
    vm.close()


def beside_ssh(lab: Lab) -> set[tuple[int, int]]:
    """Ports, here and there, of TCP listeners and connections of both hosts that are none of ssh."""
    found = set()
    for host in lab.hosts:
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{host.pid}/net/{table}").read_text().splitlines()[1:]:
                _, here, there, state, *_ = line.split()
                ports = (int(here.rpartition(":")[2], 16), int(there.rpartition(":")[2], 16))
                if state in ("01", "0A") and 22 not in ports:  # established, listening: <net/tcp_states.h>
                    found.add(ports)
    return found


def sockets(lab: Lab) -> list[str]:
    """Sockets of tunnels on both hosts, and folders for them on this machine."""
    found = [f for h in lab.hosts for f in Path(f"/proc/{h.pid}/root{FOLDER}").glob("vmkit-*")]
    return [str(f) for f in (*found, *Path(tempfile.gettempdir()).glob("vmkit-tunnel-*"))]


def tunnels(lab: Lab) -> list[str]:
    """Processes of tunnels, by what they were started with; not those of other labs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if any(b"vmkit-tunnel-" in w for w in words) and any(h.address.encode() in words for h in lab.hosts):
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def wait_until_none(lab: Lab) -> None:
    end = time.monotonic() + 60
    while (left := [*tunnels(lab), *sockets(lab)]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def test_straight_and_through_the_tunnel(mover: Mover, pair: Lab) -> None:
    """The guest goes on either way; with the tunnel no port but ssh's is open while it moves."""
    before, seen = mover.counter(60.0), {}
    for options in (["direct"], ["ssh", "--congestion", congestion_controls()[0]]):
        target = mover.target
        process = mover.start_migrate("--transport", *options, "--bandwidth", LIMIT, "-o", "json", "--deadline", "300s")
        mover.wait_for_transfer(process)
        seen[options[0]] = beside_ssh(pair)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        report = json.loads(output)
        assert (report["running_copies"], mover.source) == (1, target)
        after = mover.counter(60.0)
        assert after > before
        before = after
        assert f"transport {options[0]}:" in errors
    assert seen["ssh"] == set()
    assert seen["direct"]
    wait_until_none(pair)


def test_post_copy_through_the_tunnel(mover: Mover, pair: Lab) -> None:
    """There the tunnel belongs to the process that holds the migration."""
    target, before = mover.target, mover.counter(60.0)
    with Client(mover.source) as client:
        report = client.migrations.migrate(mover.name, target, mode="post-copy", transport="ssh", deadline=300.0)
    assert (mover.source, report.technique) == (target, "post-copy")
    assert mover.counter(60.0) > before
    wait_until_none(pair)


@pytest.mark.parametrize("options", [[], ["--mode", "hybrid"]])
def test_vmkit_killed_with_a_tunnel_open(mover: Mover, pair: Lab, options: list[str]) -> None:
    source, before = mover.source, mover.counter(60.0)
    process = mover.start_migrate("--transport", "ssh", "--bandwidth", "2M", *options)
    mover.wait_for_transfer(process)
    assert tunnels(pair)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    end = time.monotonic() + 120
    while jobs() and time.monotonic() < end:
        time.sleep(0.5)
    assert mover.source == source
    assert mover.counter(60.0) > before
    wait_until_none(pair)


def test_no_certificates_for_tls(mover: Mover) -> None:
    source, target = mover.source, mover.target
    with Client(source) as client, pytest.raises(RefusedError, match=r"the source lacks ca-cert\.pem") as caught:
        client.migrations.migrate(mover.name, target, transport="tls")
    assert "--transport ssh" in str(caught.value.hint)
    plan = vmkit("-c", source, "migrate", mover.name, "--to", target, "--transport", "tls", "--plan", "-o", "json")
    assert plan.returncode == 0, plan.stderr
    assert any("the target lacks ca-cert.pem" in w for w in json.loads(plan.stdout)["warnings"])
    assert mover.source == source


def test_a_congestion_control_that_is_not_there(mover: Mover) -> None:
    with Client(mover.source) as client, pytest.raises(RefusedError, match="no TCP congestion control 'nonesuch'"):
        client.migrations.migrate(mover.name, mover.target, transport="ssh", congestion="nonesuch")
    assert jobs() == []


@pytest.fixture
def folders(pair: Lab) -> Iterator[list[Path]]:
    """Where the QEMU of each host looks for certificates; empty before and after."""
    found = [Path(f"/proc/{h.pid}/root", FOLDER_OF_TLS) for h in pair.hosts[:2]]
    assert not any(list(f.iterdir()) for f in found)
    yield found
    for file in [file for folder in found for file in folder.iterdir()]:
        file.unlink()


def issue(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def credentials(domain: Domain) -> str:
    """What QEMU encrypts a migration with, by its own account; '' for nothing."""
    import libvirt_qemu

    answer = libvirt_qemu.qemuMonitorCommand(domain.handle, '{"execute": "query-migrate-parameters"}', 0)
    return str(json.loads(answer)["return"].get("tls-creds", ""))


def test_the_memory_goes_across_encrypted(mover: Mover, pair: Lab, folders: list[Path]) -> None:
    authority = Authority.made("authority of both")
    for folder, host in zip(folders, pair.hosts, strict=True):
        issue(folder, authority.folder(host.address))
    source, target, before = mover.source, mover.target, mover.counter(60.0)
    with Client(source) as client:
        report = client.migrations.preflight(mover.name, target, transport="tls")
    assert not report.refused
    assert any("certificates of one authority are on both hosts" in f.text for f in report.findings)
    domain = mover.hosts[mover.at].domain(mover.name)
    process = mover.start_migrate("--transport", "tls", "--bandwidth", LIMIT, "--deadline", "300s", "-o", "json")
    mover.wait_for_transfer(process)
    assert "tls" in credentials(domain)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "transport tls:" in errors
    assert (json.loads(output)["running_copies"], mover.source) == (1, target)
    assert mover.counter(60.0) > before
    assert jobs() == []


def test_certificates_of_another_authority_are_refused(mover: Mover, pair: Lab, folders: list[Path]) -> None:
    """Nothing is begun, neither where the hosts trust different ones, nor where the certificate is a stranger's."""
    at, (one, two) = mover.at, (Authority.made("one"), Authority.made("two"))
    issue(folders[at], one.folder(pair.hosts[at].address))
    issue(folders[1 - at], two.folder(pair.hosts[1 - at].address))
    source, target = mover.source, mover.target
    with Client(source) as client:
        with pytest.raises(RefusedError, match="trust different authorities") as caught:
            client.migrations.migrate(mover.name, target, transport="tls")
        assert "ca-cert.pem on both" in str(caught.value.hint)
        issue(folders[1 - at], {"ca-cert.pem": pem(one.certificate)})
        with pytest.raises(RefusedError, match=r"server-cert\.pem of the target was not issued by the authority"):
            client.migrations.migrate(mover.name, target, transport="tls")
        wrong = one.folder("192.0.2.7")
        issue(folders[1 - at], wrong)
        with pytest.raises(
            RefusedError, match=r"is not for .*, to which the migration goes \(it is for 192\.0\.2\.7\)"
        ):
            client.migrations.migrate(mover.name, target, transport="tls")
    assert mover.source == source
    assert jobs() == []


def test_a_file_transfer_goes_on_through_two_migrations(mover: Mover) -> None:
    """There by pre-copy, back by post-copy; what the guest sends back is byte for byte what it was sent."""
    mover.guest("sh", "-c", f"nc -l -p {PORT} -e cat </dev/null >/dev/null 2>&1 &")
    transfer = Transfer(mover.address)
    try:
        transfer.wait_for(2**18)
        for mode in ("pre-copy", "post-copy"):
            target, before = mover.target, transfer.back
            with Client(mover.source) as client:
                report = client.migrations.migrate(mover.name, target, mode=mode, deadline=300.0)
            assert (report.running_copies, report.technique, mover.source) == (1, mode, target)
            assert transfer.back > before
            transfer.wait_for(2**18)  # the guest that arrived has the connection, too
    finally:
        transfer.finish()
    assert not transfer.trouble
    assert transfer.back == transfer.sent
    assert transfer.digests[0].digest() == transfer.digests[1].digest()
    assert jobs() == []
