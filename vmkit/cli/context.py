"""What every command gets: the URI that was asked for, and a client that opens when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmkit.client import Client


class Context:
    """State of one run of the command line.

    Attributes:
        uri: value of -c/--connect, or None for the default.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri
        self._client: Client | None = None

    def client(self) -> Client:
        """The client for this run; the same one at each call."""
        from vmkit.client import Client

        if self._client is None:
            self._client = Client(self.uri)
        return self._client

    def close(self) -> None:
        """Close the client, if one was opened."""
        if self._client is not None:
            self._client.close()
            self._client = None
