"""What the user wants of the way the memory takes, as far as hosts and versions can stand against it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wish:
    """Options of a transfer.

    Attributes:
        post_copy: it may end as post-copy.
        auto_converge: QEMU may slow the guest down.
        compression: '', 'xbzrle', 'zstd', 'zlib'.
        parallel: connections; 0 for one.
        zero_copy: the kernel sends the guest's pages from where they are; with `parallel` only.
    """

    post_copy: bool = False
    auto_converge: bool = False
    compression: str = ""
    parallel: int = 0
    zero_copy: bool = False


PLAIN = Wish()
