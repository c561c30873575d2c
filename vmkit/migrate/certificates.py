"""The certificates that a migration with TLS needs on both hosts: looking for them, and judging what is there.

Files and names: QEMU documentation, 'TLS setup for network services'; where libvirt has QEMU look for them: qemu.conf,
migrate_tls_x509_cert_dir and default_tls_x509_cert_dir.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

from vmkit.errors import VmkitError
from vmkit.migrate.preflight import Finding, Level
from vmkit.system.shell import Shell

NEEDED_BY_SOURCE: Final = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
NEEDED_BY_TARGET: Final = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
_SCRIPT: Final = """
conf=/etc/libvirt/qemu.conf
value() { sed -n "s/^ *$1 *= *\\"\\([^\\"]*\\)\\".*/\\1/p" $conf 2>/dev/null | tail -n 1; }
dir=$(value migrate_tls_x509_cert_dir)
[ -n "$dir" ] || [ ! -d /etc/pki/libvirt-migrate ] || dir=/etc/pki/libvirt-migrate
[ -n "$dir" ] || dir=$(value default_tls_x509_cert_dir)
[ -n "$dir" ] || dir=/etc/pki/qemu
echo "dir $dir"
echo "address $(value migration_host)"
for f in ca-cert.pem server-cert.pem server-key.pem client-cert.pem client-key.pem; do
  [ -e "$dir/$f" ] && echo "have $f"
done
for f in ca-cert.pem server-cert.pem client-cert.pem; do
  [ -r "$dir/$f" ] && { echo "file $f"; cat "$dir/$f"; echo; }
done
:
"""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one host has.

    Attributes:
        folder: where its QEMU looks.
        address: `migration_host` of its qemu.conf; '' if that is not set.
        files: names of the files that are there.
        prints: name -> SHA-256 of those certificates that could be read.
        expired: those that are out of date.
        names: names and addresses that its server certificate is good for; None if that could not be read.
        strange: those that its own ca-cert.pem did not issue.
        trouble: why nothing could be seen; '' if something could.
    """

    folder: str = ""
    address: str = ""
    files: frozenset[str] = frozenset()
    prints: dict[str, str] = field(default_factory=dict)
    expired: tuple[str, ...] = ()
    names: frozenset[str] | None = None
    strange: tuple[str, ...] = ()
    trouble: str = ""


def look(uri: str) -> Holding:
    """See what a host has. That it cannot be looked at is in the answer."""
    try:
        text = Shell.of_uri(uri).run_script(_SCRIPT, timeout=20.0).stdout
    except VmkitError as e:
        return Holding(trouble=e.message)
    return parse(text, datetime.now(UTC))


def parse(text: str, now: datetime) -> Holding:
    """Read what the script printed. Pure."""
    head, *parts = text.split("\nfile ")
    lines = [line.partition(" ") for line in head.splitlines()]
    found = {key: value.strip() for key, _, value in lines if key in ("dir", "address")}
    pems = {name.strip(): body.strip() for name, _, body in (p.partition("\n") for p in parts)}
    expired = tuple(name for name, pem in pems.items() if _expired(pem, now))
    return Holding(
        folder=found.get("dir", ""),
        address=found.get("address", ""),
        files=frozenset(value for key, _, value in lines if key == "have"),
        prints={name: hashlib.sha256(pem.encode()).hexdigest() for name, pem in pems.items()},
        expired=expired,
        names=_names(pems.get("server-cert.pem", "")),
        strange=tuple(n for n in ("server-cert.pem", "client-cert.pem") if n in pems and _strange(pems, n)),
    )


def judge(source: Holding, target: Holding, target_name: str) -> tuple[Finding, ...]:
    """What stands against TLS between these two. Pure.

    Args:
        source: what the source has.
        target: what the target has.
        target_name: the target's host name, to which libvirt migrates where its qemu.conf names no other.
    """
    return tuple(_findings(source, target, target.address or target_name))


def _findings(source: Holding, target: Holding, name: str) -> Iterator[Finding]:
    sides = (("source", source, NEEDED_BY_SOURCE), ("target", target, NEEDED_BY_TARGET))
    complete = True
    for side, held, needed in sides:
        if held.trouble:
            complete = False
            yield Finding("tls", Level.WARNING, f"the certificates of the {side} could not be seen: {held.trouble}")
            continue
        if lack := [n for n in needed if n not in held.files]:
            complete = False
            fix = f"put them into {held.folder} there (QEMU documentation, 'TLS setup'), or use --transport ssh"
            yield Finding("tls", Level.REFUSED, f"the {side} lacks {', '.join(lack)} in {held.folder}", fix)
        if old := [n for n in needed if n in held.expired]:
            complete = False
            fix = f"issue it anew: {held.folder}/{old[0]}"
            yield Finding("tls", Level.REFUSED, f"{', '.join(old)} of the {side} is out of date", fix)
        if strange := [n for n in needed if n in held.strange]:
            complete = False
            text = f"{', '.join(strange)} of the {side} was not issued by the authority in its ca-cert.pem"
            yield Finding("tls", Level.REFUSED, text, f"have that authority issue it: {held.folder}/{strange[0]}")
    if not complete:
        return
    ours, theirs = source.prints.get("ca-cert.pem"), target.prints.get("ca-cert.pem")
    if ours and theirs and ours != theirs:
        fix = f"put one certificate of one authority into {source.folder}/ca-cert.pem on both"
        yield Finding("tls", Level.REFUSED, "the two hosts trust different authorities (ca-cert.pem differs)", fix)
    elif target.names is not None and not covers(target.names, name):
        known = ", ".join(sorted(target.names)) or "nothing"
        text = f"the target's certificate is not for {name}, to which the migration goes (it is for {known})"
        yield Finding("tls", Level.REFUSED, text, f"issue it with {name} among its subject alternative names")
    else:
        yield Finding("tls", Level.OK, f"certificates of one authority are on both hosts, the target's for {name}")


def covers(names: frozenset[str], name: str) -> bool:
    """Whether a certificate for these is one for `name` (RFC 6125: a star stands for one label, the first)."""
    low = name.lower()
    known = {n.lower() for n in names}
    try:
        return str(ip_address(low)) in known
    except ValueError:
        _, _, rest = low.partition(".")
        return low in known or bool(rest and f"*.{rest}" in known)


def _expired(pem: str, now: datetime) -> bool:
    from cryptography import x509

    try:
        one = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return False
    end = getattr(one, "not_valid_after_utc", None) or one.not_valid_after.replace(tzinfo=UTC)  # before version 42
    return bool(end < now)


def _strange(pems: dict[str, str], name: str) -> bool:
    """Whether no authority of ca-cert.pem issued the certificate, or one that stands with it in its file.

    False where that cannot be told: a file that is not read, or a library before version 40.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    if not hasattr(x509.Certificate, "verify_directly_issued_by"):
        return False
    try:
        chain, known = (x509.load_pem_x509_certificates(pems.get(n, "").encode()) for n in (name, "ca-cert.pem"))
    except ValueError:
        return False
    for one in chain:
        for authority in known:
            with contextlib.suppress(ValueError, TypeError, InvalidSignature):
                one.verify_directly_issued_by(authority)
                return False
    return True


def _names(pem: str) -> frozenset[str] | None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        one = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return None
    try:
        san = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset(str(a.value) for a in one.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    addresses = {str(a) for a in san.get_values_for_type(x509.IPAddress)}
    return frozenset({*map(str, san.get_values_for_type(x509.DNSName)), *addresses})
