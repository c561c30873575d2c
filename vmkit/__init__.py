"""vmkit: create, move and hot-fix virtual machines on KVM and Xen hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmkit.client import Client as Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # `import vmkit` stays cheap: the client pulls in what it needs when it is used.
    if name == "Client":
        from vmkit.client import Client

        return Client
    raise AttributeError(f"module 'vmkit' has no attribute '{name}'")
