"""The two connections that libvirt's migration call goes by: of its own, with a fuse where there can be one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from vmkit.errors import VmkitError
from vmkit.migrate.settle import CONNECT_S, bounded
from vmkit.system.fuse import fused

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host

_CLOSE_S: Final = 5.0
Ends = Callable[[], "tuple[Host, Host] | None"]
"""Waits for the connections to source and target; None where there is no fuse between them.

Raises:
    UnreachableError: one could not be opened.
"""


@contextlib.contextmanager
def line(source: str, target: str, folder: str) -> Iterator[Ends]:
    """Open both in the background while the block goes on; when it ends they are closed.

    `folder`, of `fuse.folder_name`, is there as long.
    """
    from vmkit.hypervisor.host import Host

    opened: list[Host] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def work(uris: tuple[str, str]) -> None:
        try:
            opened.append(bounded(lambda: Host.connect(uris[0], events=True), CONNECT_S, source))
            if not over.is_set():
                opened.append(bounded(lambda: Host.connect(uris[1], events=True, keep_alive=False), CONNECT_S, target))
        except BaseException as e:
            failed.append(e)
        if over.is_set():
            close(opened)

    with fused(source, target, folder) as uris:
        if uris is None:
            yield lambda: None
            return
        thread = threading.Thread(target=work, args=(uris,), daemon=True, name="vmkit-line")
        thread.start()

        def ends() -> tuple[Host, Host]:
            thread.join()
            if failed:
                raise failed[0]
            return opened[0], opened[1]

        try:
            yield ends
        finally:
            over.set()  # if they are still being opened, nobody waits for that
            close(opened)


def close(hosts: list[Host]) -> None:
    """Close them. One that does not answer is not waited for."""
    for host in hosts:
        with contextlib.suppress(VmkitError):
            bounded(host.close, _CLOSE_S, host.uri)


@contextlib.contextmanager
def connected(source: str, target: str, folder: str) -> Iterator[tuple[Host, Host]]:
    """Connections to both, with a fuse where there can be one.

    Raises:
        UnreachableError: one does not answer.
    """
    from vmkit.hypervisor.host import Host

    with line(source, target, folder) as ends, contextlib.ExitStack() as stack:
        if (both := ends()) is None:
            here, there = (stack.enter_context(Host.connect(uri, events=True)) for uri in (source, target))
            both = here, there
        yield both
