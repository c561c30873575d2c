"""Certificates for both ends of a migration by TLS."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SIGNS = {"key_cert_sign": True, "crl_sign": True}
ANSWERS = {"digital_signature": True, "key_encipherment": True}


@dataclass(frozen=True)
class Authority:
    """One that issues certificates."""

    key: EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def made(cls, name: str) -> Authority:
        key = generate_private_key(SECP256R1())
        return cls(key, _signed(name, key, name, key, ca=True))

    def folder(self, address: str) -> dict[str, bytes]:
        """The files of one host, for both ends of a migration; the certificates are for its address."""
        found = {"ca-cert.pem": pem(self.certificate)}
        issuer = self.certificate.subject.rfc4514_string().removeprefix("CN=")
        for role in ("server", "client"):
            key = generate_private_key(SECP256R1())
            found[f"{role}-cert.pem"] = pem(_signed(address, key, issuer, self.key, address=address))
            found[f"{role}-key.pem"] = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        return found


def pem(certificate: x509.Certificate) -> bytes:
    """As a file holds it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _signed(
    name: str,
    key: EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    address: str = "",
) -> x509.Certificate:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, issuer)]
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    uses = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    uses += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    wanted = SIGNS if ca else ANSWERS
    made = made.add_extension(x509.KeyUsage(**{u: wanted.get(u, False) for u in uses}), critical=True)
    if not ca:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = made.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
    return made.sign(issuer_key, hashes.SHA256())
