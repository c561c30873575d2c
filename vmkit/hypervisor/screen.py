"""Pictures of a domain's screen."""

from __future__ import annotations

from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated


def grab(domain: Domain, screen: int = 0) -> tuple[str, bytes]:
    """What a running domain's screen shows: the picture's MIME type, as libvirt says it, and its bytes.

    Raises:
        UnsupportedError, EffectError: the driver has no pictures, or the domain no such screen.
    """
    with translated(f"picture of the screen of {domain.name}"):
        stream = domain.host.handle.newStream(0)
        mime = str(domain.handle.screenshot(stream, screen, 0))
        parts: list[bytes] = []
        while part := stream.recv(256 * 1024):
            parts.append(part)
        stream.finish()
    return mime, b"".join(parts)
