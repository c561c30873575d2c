"""What carries a migration: choice of the transport, certificates for TLS, and the legs of a tunnel."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from vmkit.errors import RefusedError, SpecError, UnsupportedError
from vmkit.migrate.certificates import Holding, covers, judge, parse
from vmkit.migrate.plan import request_of
from vmkit.migrate.preflight import Level
from vmkit.migrate.transport import Transport, carriage_of, check_carriage
from vmkit.migrate.wish import Wish
from vmkit.system.tunnel import FOLDER, Road, check_congestion, congestion_controls, legs, opened, swept

H1, H2 = "qemu+ssh://root@h1/system", "qemu+ssh://root@h2:2222/system"
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_auto_is_the_direct_way_and_says_why() -> None:
    request = request_of("web1", H2, {})
    assert request.carriage.taken is Transport.DIRECT
    assert "nothing else was asked for" in request.carriage.why
    assert "in the clear" in request.carriage.why


@pytest.mark.parametrize(
    ("transport", "congestion", "path"),
    [("pigeon", None, "--transport"), ("direct", "bbr", "--congestion"), ("ssh", "b b", "--congestion")],
)
def test_what_cannot_be_meant(transport: str, congestion: str | None, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        carriage_of(transport, congestion)
    assert caught.value.path == path
    assert caught.value.hint or congestion is None


def test_what_goes_together() -> None:
    check_carriage(carriage_of("tls", None), "QEMU", Wish(parallel=4))
    check_carriage(carriage_of("ssh", "bbr"), "QEMU")
    check_carriage(carriage_of("direct", None), "Xen")
    with pytest.raises(SpecError, match="one TCP connection"):
        check_carriage(carriage_of("ssh", None), "QEMU", Wish(parallel=2))
    with pytest.raises(SpecError, match="encrypted"):
        check_carriage(carriage_of("tls", None), "QEMU", Wish(parallel=2, zero_copy=True))
    with pytest.raises(UnsupportedError, match="Xen sends straight only"):
        check_carriage(carriage_of("tls", None), "Xen")


# -- the tunnel


def test_a_tunnel_between_two_other_hosts_has_two_legs() -> None:
    road = Road.between(H1, H2, "a1", ["memory", "disks"], "bbr")
    onward, inward = legs(road)
    assert onward[1] == [
        *("-L", f"{road.scratch}/memory:{FOLDER}/vmkit-a1.memory"),
        *("-L", f"{road.scratch}/disks:{FOLDER}/vmkit-a1.disks"),
    ]
    assert inward[1][:2] == ["-R", f"{FOLDER}/vmkit-a1.memory:{road.scratch}/memory"]
    assert (onward[0].where, inward[0].where) == ("h2", "h1")
    assert (onward[3], inward[3]) == ("bbr", "")  # only what this machine sends can be tuned from here
    assert not Path(road.scratch).exists()
    assert Road.parse(road.plain()) == road  # type: ignore[arg-type]
    assert len(road.path("memory")) < 108  # sun_path, unix(7)


@pytest.mark.parametrize(
    ("source", "target", "flag", "where"), [("qemu:///system", H2, "-L", "h2"), (H1, "qemu:///system", "-R", "h1")]
)
def test_a_tunnel_from_or_to_this_machine_has_one(source: str, target: str, flag: str, where: str) -> None:
    road = Road.between(source, target, "a1", ["memory"])
    assert road.scratch == ""
    ((shell, forwards, sockets, _),) = legs(road)
    assert (shell.where, forwards) == (where, [flag, f"{FOLDER}/vmkit-a1.memory:{FOLDER}/vmkit-a1.memory"])
    assert sockets == [f"{FOLDER}/vmkit-a1.memory"]


@pytest.mark.parametrize(
    ("source", "target"), [("qemu:///system", "qemu:///system"), (H1, "qemu+tcp://h2/system"), ("test:///default", "")]
)
def test_no_tunnel_without_ssh(source: str, target: str) -> None:
    with pytest.raises(RefusedError):
        Road.between(source, target or "qemu:///system", "a1", ["memory"])


@pytest.fixture
def ssh(tmp_path: Path) -> str:
    """A libvirt URI whose ssh is a script: it refuses as a real one does, and writes down how it was called."""
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/argv\necho "Permission denied" >&2\nexit 255\n')
    program.chmod(0o755)
    return f"qemu+ssh://root@h9/system?command={program}"


def test_ssh_that_is_not_let_in(ssh: str, tmp_path: Path) -> None:
    road = Road.between("qemu:///system", ssh, "a1", ["memory"], "cubic")
    with pytest.raises(RefusedError, match="no tunnel to h9: Permission denied"), opened(road):
        pytest.fail("it is not open")
    words = (tmp_path / "argv").read_text().splitlines()
    assert "ProxyUseFdpass=yes" in words
    assert any(w.startswith("ProxyCommand=") and w.endswith("dial.py cubic %h %p") for w in words)
    assert words[-2] == "h9"
    swept(road)


def test_a_congestion_control_that_the_kernel_has_not() -> None:
    assert congestion_controls()
    check_congestion(congestion_controls()[0])
    with pytest.raises(RefusedError, match="no TCP congestion control 'nonesuch'") as caught:
        check_congestion("nonesuch")
    assert congestion_controls()[0] in str(caught.value.hint)


def test_the_dialler_says_who_does_not_answer() -> None:
    program = Path(sys.modules["vmkit.system.tunnel"].__file__ or "").with_name("dial.py")
    argv = [sys.executable, str(program), congestion_controls()[0], "127.0.0.1", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert done.returncode == 1
    assert "connect to 127.0.0.1 port 1: Connection refused" in done.stderr


# -- certificates


AUTHORITY = Ed25519PrivateKey.generate()


def certificate(
    *names: str, days: int = 30, own: Ed25519PrivateKey | None = None, by: Ed25519PrivateKey = AUTHORITY
) -> str:
    """One that `by` issued for a key of its own."""
    key = own or Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "h2")])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(7).not_valid_before(NOW - timedelta(days=90)).not_valid_after(NOW + timedelta(days=days))
    if names:
        known = [x509.IPAddress(ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
        made = made.add_extension(x509.SubjectAlternativeName(known), critical=False)
    return made.sign(by, None).public_bytes(serialization.Encoding.PEM).decode()


def printed(files: dict[str, str], address: str = "") -> str:
    """As the script that looks at a host prints it."""
    text = f"dir /etc/pki/qemu\naddress {address}\n" + "".join(f"have {name}\n" for name in files)
    return text + "".join(f"file {name}\n{body}\n" for name, body in files.items() if not name.endswith("key.pem"))


CA = certificate(own=AUTHORITY)
STRANGER = Ed25519PrivateKey.generate()
OURS = {"ca-cert.pem": CA, "client-cert.pem": certificate(), "client-key.pem": ""}


def theirs(server: str, ca: str = CA) -> dict[str, str]:
    return {"ca-cert.pem": ca, "server-cert.pem": server, "server-key.pem": ""}


def verdict(ours: dict[str, str], target: dict[str, str], address: str = "") -> list[tuple[Level, str]]:
    return [
        (f.level, f.text) for f in judge(parse(printed(ours), NOW), parse(printed(target, address), NOW), "h2.example")
    ]


def test_certificates_that_will_do() -> None:
    ((level, text),) = verdict(OURS, theirs(certificate("h2.example", "192.0.2.7")))
    assert (level, "h2.example" in text) == (Level.OK, True)
    ((level, _),) = verdict(OURS, theirs(certificate("h2.example", "192.0.2.7")), "192.0.2.7")
    assert level is Level.OK


@pytest.mark.parametrize(
    ("ours", "target", "text"),
    [
        ({"ca-cert.pem": CA}, theirs(certificate("h2.example")), "the source lacks client-cert.pem, client-key.pem"),
        (OURS, {"ca-cert.pem": CA}, "the target lacks server-cert.pem, server-key.pem"),
        (OURS, theirs(certificate("h2.example", days=-1)), "server-cert.pem of the target is out of date"),
        (
            OURS,
            theirs(certificate("h2.example", by=STRANGER), certificate(own=STRANGER, by=STRANGER)),
            "trust different authorities",
        ),
        (
            OURS,
            theirs(certificate("h2.example", by=STRANGER)),
            "server-cert.pem of the target was not issued by the authority in its ca-cert.pem",
        ),
        (
            {**OURS, "client-cert.pem": certificate(by=STRANGER)},
            theirs(certificate("h2.example")),
            "client-cert.pem of the source was not issued",
        ),
        (OURS, theirs(certificate("h3.example")), "is not for h2.example"),
        (OURS, theirs(certificate()), "is not for h2.example, to which the migration goes (it is for h2)"),
    ],
)
def test_certificates_that_will_not(ours: dict[str, str], target: dict[str, str], text: str) -> None:
    found = verdict(ours, target)
    assert found[0][0] is Level.REFUSED
    assert text in found[0][1]
    refused = judge(parse(printed(ours), NOW), parse(printed(target), NOW), "h2.example")[0]
    assert refused.fix


def test_certificates_that_cannot_be_seen() -> None:
    found = judge(Holding(trouble="no ssh"), Holding(trouble="no ssh"), "h2")
    assert [f.level for f in found] == [Level.WARNING, Level.WARNING]


@pytest.mark.parametrize(
    ("names", "name", "good"),
    [
        ({"H2.example"}, "h2.EXAMPLE", True),
        ({"*.example"}, "h2.example", True),
        ({"*.example"}, "a.h2.example", False),
        ({"*.example"}, "example", False),
        ({"192.0.2.7"}, "192.0.2.7", True),
        ({"*.0.2.7"}, "192.0.2.7", False),
        ({"2001:db8::7"}, "2001:DB8:0::7", True),
        (set(), "h2", False),
    ],
)
def test_whom_a_certificate_is_for(names: set[str], name: str, good: bool) -> None:
    assert covers(frozenset(names), name) is good
