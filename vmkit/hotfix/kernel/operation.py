"""One operation on the running kernel: checks, journal, transaction. Its shape is that of hotfix.operation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from vmkit.errors import VmkitError
from vmkit.hotfix import history, undo
from vmkit.hotfix.kernel import judge
from vmkit.hotfix.kernel.facts import KernelFacts, gather, livepatch_of
from vmkit.hotfix.kernel.image import KernelImage, change_for
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.plans import Action
from vmkit.hotfix.targets.qemu import QemuGuest, find_guests
from vmkit.hotfix.transaction import Hook, Outcome, Transaction
from vmkit.hypervisor.host import Host
from vmkit.plan import Plan
from vmkit.progress import Finished, Note, Reporter, Started
from vmkit.system.clock import stopwatch
from vmkit.system.journal import journalled
from vmkit.system.livepatch import LiveKernel

MAX_PAUSE: Final = 10.0
"""Seconds that guests may stand where nothing else is said: the kernel looks after its tasks once a second."""
DONE: Final = {Action.APPLY: ("applied", "already applied"), Action.REVERT: ("reverted", "not applied")}


class KernelTarget:
    """The kernel of a host, with a patch in hand.

    Args:
        host: the host; it is this machine, or one whose kernel this is.
        patch: of its kernel.
        kernel: that kernel.
    """

    def __init__(self, host: Host, patch: Patch, kernel: LiveKernel) -> None:
        self._host = host
        self._patch = patch
        self._kernel = kernel

    def plan(self, action: Action) -> Plan:
        """What would be done, after every check.

        Raises: as judge.needed and targets.qemu.find_guests.
        """
        facts = gather(self._kernel, self._patch)
        some = judge.needed(action, self._patch, facts)
        guests = [g.name for g in find_guests(self._host) if g.runs] if some else []
        return judge.plan_for(action, self._patch, facts, guests, some=some)

    def carry_out(
        self, action: Action, text: str, hook: Hook, max_pause: float, reporter: Reporter
    ) -> tuple[bool, KernelFacts, list[QemuGuest], Outcome]:
        """Do it. Whether something was to be done, what the kernel was before, the guests, and how it went.

        Raises: as `plan`, and as Transaction.run.
        """
        reporter(Started("check"))
        clock = stopwatch()
        facts = gather(self._kernel, self._patch)
        some = judge.needed(action, self._patch, facts)
        guests = find_guests(self._host) if some else []
        reporter(Finished("check", clock(), judge.label(self._patch)))
        if not some:
            self._remember(action, facts, reporter)
            return False, facts, guests, Outcome()
        return True, facts, guests, self._transact(action, text, facts, guests, hook, max_pause, reporter)

    def _transact(
        self,
        action: Action,
        text: str,
        facts: KernelFacts,
        guests: Sequence[QemuGuest],
        hook: Hook,
        max_pause: float,
        reporter: Reporter,
    ) -> Outcome:
        patch, label, uri = self._patch, judge.label(self._patch), self._host.uri
        on = action is Action.APPLY
        image = KernelImage(self._kernel, patch, facts.places if on else {})
        running = [g for g in guests if g.runs]
        hook("record")
        undo.save(patch.id, text, ())
        hook("journal")
        with journalled(
            *("hotfix", patch.id, "writing"),
            uri=uri,
            action=action.value,
            kernel={"boot": facts.boot, "name": livepatch_of(patch).name, "label": label},
            guests=[[g.name, g.uuid] for g in running],
        ) as entry:
            entry.keep = True
            change = change_for(image, on=on)
            transaction = Transaction(f"hotfix {patch.id}", [change], running, hook=hook, max_pause=max_pause)
            reporter(Started(action.value))
            clock = stopwatch()
            try:
                transaction.run()
            except VmkitError as e:
                history.note("failed", patch.id, uri, [label], f"{action.value}: {e.message}")
                raise
            finally:
                outcome = transaction.outcome
                if not outcome.verified and outcome.clean:
                    with suppress(VmkitError):  # a module that nothing uses does no harm
                        image.tidy()
                entry.keep = not outcome.clean
                if entry.keep and outcome.verified:
                    with suppress(VmkitError):
                        entry.advance("written")
            entry.keep = True
            hook("note-written")
            with suppress(VmkitError):  # a full disk is no failure from here on
                entry.advance("written")
            hook("tidy")
            with suppress(VmkitError):
                image.tidy()
            hook("finish")
            self._remember(action, facts, reporter)
            entry.keep = False
        if not history.note(DONE[action][0], patch.id, uri, [label]):
            reporter(Note("it could not be written into the history of hotfixes", warning=True))
        pauses = transaction.outcome.pause_ms
        longest = f"longest pause {max(pauses.values()):.0f} ms" if pauses else "no guest ran"
        reporter(Finished(action.value, clock(), longest))
        return transaction.outcome

    def _remember(self, action: Action, facts: KernelFacts, reporter: Reporter) -> None:
        try:
            undo.carried(self._patch.id, facts.boot if action is Action.APPLY else "")
        except VmkitError as e:
            reporter(Note(f"vmkit hotfix status may show it wrongly after the next boot: {e.message}", warning=True))


def stands(patch: Patch, kernel: LiveKernel) -> tuple[str, str]:
    """State and detail of a patch of the kernel, for `status`."""
    try:
        facts = gather(kernel, patch)
    except VmkitError as e:
        return "unknown", e.message
    remembered = undo.recall(patch.id)
    return judge.standing(patch, facts, remembered.boot if remembered else "")
