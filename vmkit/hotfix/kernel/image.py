"""The kernel as what a transaction works on: one place that holds whether the livepatch is in use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from vmkit.errors import DeadlineError, EffectError, NotFoundError, RefusedError, VmkitError
from vmkit.hotfix.kernel.facts import held, livepatch_of
from vmkit.hotfix.kernel.judge import difference, label
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.transaction import Change
from vmkit.hotfix.verify import Page, Span, Write
from vmkit.system.clock import Deadline
from vmkit.system.livepatch import LiveKernel

OFF: Final = b"\0"
ON: Final = b"\1"
PATIENCE_SECONDS: Final = 30.0
"""How long to wait for tasks on the way back. The kernel looks at them once a second, and from the 15th second on wakes
those that sleep (SIGNALS_TIMEOUT in kernel/livepatch/transition.c)."""
BACK_SECONDS: Final = 5.0
"""The same while guests stand, because the way there was too slow."""
_POLL_SECONDS: Final = 0.01


class KernelImage:
    """The running kernel; see transaction.Image. Its bytes are OFF or ON, whatever the address.

    Args:
        kernel: the kernel.
        patch: of it.
        places: where the functions are, to compare them once more; {} does without.
    """

    def __init__(self, kernel: LiveKernel, patch: Patch, places: dict[str, list[int]]) -> None:
        self.label = label(patch)
        self.gone = False
        self._kernel = kernel
        self._patch = patch
        self._part = livepatch_of(patch)
        self._places = places
        self._seconds = PATIENCE_SECONDS

    def read(self, address: int, length: int) -> bytes:
        """Whether the livepatch is in use: OFF or ON.

        Raises:
            RefusedError: the function is not what was expected, or some tasks are on their way.
        """
        del address, length
        state = self._kernel.state(self._part.name)
        if state.moving:
            raise RefusedError(f"{self.label}: some tasks use the livepatch {self._part.name}, and some do not")
        if self._places and (detail := difference(self._patch, held(self._kernel, self._patch, self._places))):
            raise RefusedError(f"{self.label}: {detail}")
        return ON if state.enabled else OFF

    def write(self, address: int, data: bytes) -> None:
        """Have all tasks use the livepatch (ON), or none (OFF).

        Raises:
            DeadlineError: some task stays behind; it is on its way still.
            EffectError: the kernel refused.
        """
        del address
        if data == ON:
            self._put_in()
        else:
            self._take_out()

    def prepare(self, spans: Sequence[Span]) -> None:
        """Nothing to do."""

    def halt(self) -> None:
        """Nothing to do: the kernel looks after every task by itself."""

    def let_go(self) -> None:
        """Nothing to do."""

    @contextmanager
    def still(self, spans: Sequence[Span], seconds: float) -> Iterator[None]:
        """Take note of the seconds that are left for the first way there."""
        del spans
        self._seconds = seconds
        yield

    def tidy(self) -> None:
        """Unload a module that is not in use any more.

        Raises:
            EffectError, DeadlineError: it stays loaded; it does no harm.
        """
        state = self._kernel.state(self._part.name)
        if state.loaded and not state.enabled and not state.moving:
            self._unload()

    def _put_in(self) -> None:
        name = self._part.name
        state = self._kernel.state(name)
        if state.moving:  # back, that is: it turns round
            self._kernel.enable(name, on=True)
        elif not state.enabled:
            if state.loaded:
                self._unload()
            self._kernel.load(name, self._part.module)
        self._wait(on=True)

    def _take_out(self) -> None:
        name = self._part.name
        state = self._kernel.state(name)
        if state.enabled:
            try:
                self._kernel.enable(name, on=False)
            except NotFoundError:
                return
        self._wait(on=False)

    def _wait(self, *, on: bool) -> None:
        deadline = Deadline(self._seconds)
        self._seconds = BACK_SECONDS  # should this fail
        while (state := self._kernel.state(self._part.name)).moving:
            if deadline.passed:
                behind = self._kernel.lagging(on=on)
                raise DeadlineError(
                    f"not every task went over within {deadline.elapsed:.1f} s",
                    hint="give it longer: --max-pause MS",
                    details=tuple(f"not yet: {task}" for task in behind[:8]),
                )
            time.sleep(_POLL_SECONDS)
        if state.enabled is not on:
            raise EffectError(f"somebody else has turned the livepatch {self._part.name} round")

    def _unload(self) -> None:
        deadline = Deadline(PATIENCE_SECONDS)
        while not self._kernel.unload(self._part.name):
            deadline.check(f"the kernel to let go of the module {self._part.name}")
            time.sleep(_POLL_SECONDS)


def change_for(image: KernelImage, *, on: bool) -> Change:
    """What a transaction is to do with it."""
    old, new = (OFF, ON) if on else (ON, OFF)
    return Change(image, (Write(0, old, new),), (Page(0, old, new),))


def take_out(kernel: LiveKernel, patch: Patch) -> bool:
    """Have no task use the livepatch any more, and unload it. Whether there was something to do.

    Raises:
        VmkitError: it could not be done; the message says how it stands.
    """
    name = livepatch_of(patch).name
    if not kernel.state(name).loaded:
        return False
    image = KernelImage(kernel, patch, {})
    try:
        image.write(0, OFF)
        image.tidy()
    except VmkitError as e:
        raise EffectError(f"the livepatch {name} is still there: {e.message}", hint=e.hint, details=e.details) from e
    return True
