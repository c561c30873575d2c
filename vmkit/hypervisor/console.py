"""A domain's console as two pipes: bytes that come, and bytes that go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import libvirt

from vmkit.errors import ConflictError, EffectError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated


class ConsoleStream:
    """An open console. Its host must have been opened with `events=True`.

    Args:
        domain: whose console.
        on_bytes: called with what the guest writes, in libvirt's event thread.
        force: throw out whoever is attached.

    Raises:
        ConflictError: somebody is attached, and `force` is not set.
    """

    def __init__(self, domain: Domain, on_bytes: Callable[[bytes], None], *, force: bool = False) -> None:
        self._name = domain.name
        self._on_bytes = on_bytes
        try:
            self._stream = domain.open_console(force=force)
        except EffectError as e:
            if "Active console session exists" not in e.message:  # libvirt's qemuDomainOpenConsole
                raise
            raise ConflictError(
                f"somebody else sits at the console of {self._name}",
                hint=f"throw them out: vmkit console --force {self._name}; or look on: vmkit log {self._name}",
            ) from e
        self._lock = threading.Lock()
        self.closed = threading.Event()
        with translated(f"console of {self._name}"):
            self._stream.eventAddCallback(
                libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR,
                self._event,
                None,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _event(self, _stream: Any, events: int, _opaque: Any) -> None:
        if events & libvirt.VIR_STREAM_EVENT_READABLE:
            try:
                data = self._stream.recv(16 * 1024)
            except libvirt.libvirtError:
                self.closed.set()
                return
            if data == -2:  # nothing there after all
                return
            if not data:
                self.closed.set()
                return
            self._on_bytes(data)
        if events & (libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR):
            self.closed.set()

    def send(self, data: bytes) -> None:
        """Write to the guest; waits where its console cannot take more.

        Raises:
            EffectError: the console was closed by the other side.
        """
        while data:
            if self.closed.is_set():
                raise EffectError(
                    f"the console of {self._name} was closed",
                    hint=f"vmkit console {self._name} attaches again; vmkit show {self._name} says whether the VM runs",
                )
            with translated(f"console of {self._name}"), self._lock:
                sent = self._stream.send(data)
            if sent == -2:
                self.closed.wait(0.02)
                continue
            data = data[sent:]

    def close(self) -> None:
        """Let go of the console."""
        self.closed.set()
        try:
            with translated(f"console of {self._name}"):
                self._stream.eventRemoveCallback()
                self._stream.abort()
        except Exception as e:
            del e
