"""One VM: a handle whose every call asks its host."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.errors import ConflictError, DeadlineError, NotFoundError, RefusedError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.progress import Reporter, silent
from vmkit.system.clock import Deadline

if TYPE_CHECKING:
    from vmkit.plan import Plan
    from vmkit.system.process import Completed
    from vmkit.vm.addresses import Found
    from vmkit.vm.describe import Disk, Nic
    from vmkit.vm.isolation import Isolation
    from vmkit.vm.limiting import Shown
    from vmkit.vm.limits import Change, Limits
    from vmkit.vm.metadata import Remembered
    from vmkit.vm.readiness import Goal, Layer, Ready

ASK_AGAIN: Final = 10.0
"""Seconds after which a guest that still runs is asked again to shut down."""


@dataclass(frozen=True, slots=True)
class Details:
    """All that `vmkit show` tells. `memory` is in bytes, `cpu_seconds` since it was started.

    `limits` are those of what runs, or of the definition where it does not run; `isolation` is None where it does not.
    """

    name: str
    uuid: str
    uri: str
    state: str
    reason: str
    persistent: bool
    autostart: bool
    vcpus: int
    memory: int
    cpu_seconds: float
    accelerator: str
    arch: str
    machine: str | None
    cpu: str
    image: str | None
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    addresses: tuple[str, ...]
    qemu_args: tuple[str, ...]
    labels: dict[str, str]
    managed: bool
    limits: Limits | None
    isolation: Isolation | None


class Vm:
    """One VM. A handle: every call asks its host."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.name = domain.name
        self.uuid = domain.uuid

    def __repr__(self) -> str:
        return f"<Vm {self.name} on {self.domain.host.uri}>"

    @property
    def state(self) -> DomainState:
        """State now."""
        return self.domain.state()

    def remembered(self) -> Remembered | None:
        """What vmkit keeps in the domain's metadata; None for a domain that another tool made."""
        from vmkit.vm.metadata import NAMESPACE, remembered_in

        element = self.domain.metadata(NAMESPACE)
        return remembered_in(element) if element else None

    def details(self) -> Details:
        """All about it."""
        from vmkit.vm import isolation
        from vmkit.vm.describe import describe
        from vmkit.vm.limiting import gather

        info = self.domain.info()
        xml = self.domain.xml()
        described = describe(xml)
        limits = gather(self.domain)
        memory = self.remembered()
        return Details(
            name=self.name,
            uuid=self.uuid,
            uri=self.domain.host.uri,
            state=info.state.value,
            reason=info.reason,
            persistent=self.domain.persistent,
            autostart=self.domain.autostart if self.domain.persistent else False,
            vcpus=info.vcpus,
            memory=info.memory,
            cpu_seconds=info.cpu_seconds,
            accelerator=described.accelerator,
            arch=described.arch,
            machine=described.machine,
            cpu=described.cpu,
            image=memory.image if memory else None,
            disks=described.disks,
            nics=described.nics,
            addresses=self.addresses().good if info.state is DomainState.RUNNING else (),
            qemu_args=described.qemu_args,
            labels=memory.spec.get("labels", {}) if memory else {},
            managed=memory is not None,
            limits=limits.live or limits.config,
            isolation=isolation.look(self.domain, xml) if info.state.active else None,
        )

    def addresses(self) -> Found:
        """Its IP addresses, the best first: what guest agent, DHCP server, ARP table and reservations say, merged."""
        from vmkit.vm.addresses import Finder

        return Finder(self.domain).look()

    def limits(self) -> Shown:
        """What it may take from its host: now, and at its next start."""
        from vmkit.vm.limiting import Shown, gather

        facts = gather(self.domain)
        return Shown(self.name, (), (), facts.live, facts.config)

    def plan_limit(self, change: Change, *, live: bool = False, config: bool = False) -> Plan:
        """What `limit` would do, with the same errors; nothing is touched."""
        from vmkit.vm.limiting import plan

        return plan(self.domain, change, live=live, config=config).plan

    def limit(self, change: Change, *, live: bool = False, config: bool = False) -> Shown:
        """Change what it may take from its host.

        Args:
            change: what shall be different; vmkit.vm.limits.parse_change makes one.
            live: in what runs.
            config: in the definition. Neither of the two: in both, as far as they are there.

        Raises:
            SpecError, RefusedError: nothing was touched.
            EffectError: a part failed; everything is as it was, or the message says what is not.
        """
        from vmkit.vm.limiting import Shown, apply, gather

        done = apply(self.domain, change, live=live, config=config).plan
        facts = gather(self.domain)
        return Shown(self.name, tuple(s.what for s in done.steps), done.warnings, facts.live, facts.config)

    def start(self, *, reporter: Reporter = silent) -> bool:
        """Start it. False if it runs already. A paused VM is refused: it has to be resumed.

        Raises:
            ConflictError: it is paused, or an operation holds it.
        """
        from vmkit.hypervisor.snapshot import saved
        from vmkit.vm.console_log import remove
        from vmkit.vm.devices import lent_for_start

        state = self.state
        if state is DomainState.PAUSED:
            raise ConflictError(f"{self.name} is paused", hint=f"vmkit resume {self.name}")
        if state.active:
            return False
        memory = self.remembered()
        if memory and memory.console_log and not saved(self.domain):  # a guest that was saved goes on
            remove(self.domain.host, memory.console_log)
        with lent_for_start(self.domain, reporter):
            self.domain.start()
        return True

    def stop(self, *, force: bool = False, deadline: float = 60.0) -> bool:
        """Shut it down and wait for that; with `force`, pull the plug. False if it is shut off already.

        Devices that vmkit lent to it go back to the host.

        Raises:
            DeadlineError: the guest did not shut down in time; it still runs.
            EffectError: it is off, and a device did not go back to its driver.
        """
        from vmkit.vm.devices import has_lendings, take_back

        if not self.state.active:
            return False
        lends = has_lendings(self.domain)
        self._end(force, deadline)
        if lends:
            take_back(self.domain.host, self.uuid)
        return True

    def _end(self, force: bool, deadline: float) -> None:
        if force or self.state is DomainState.CRASHED:
            self.domain.destroy()
            return
        if self.state is DomainState.PAUSED:
            raise ConflictError(
                f"{self.name} is paused, so its guest cannot shut down",
                hint=f"vmkit resume {self.name}, or vmkit stop --force {self.name}",
            )
        persistent = self.domain.persistent
        limit = Deadline(deadline)
        self.domain.shutdown()
        while True:
            try:
                Deadline(min(ASK_AGAIN, limit.left)).wait_for(
                    f"{self.name} did not shut down",
                    lambda: not (self.domain.state().active if persistent else self.domain.exists()),
                )
            except DeadlineError:
                if not limit.passed:
                    # A request that comes while the guest boots is lost: nobody is there to see the button.
                    with contextlib.suppress(ConflictError, NotFoundError):  # it may be off by now
                        self.domain.shutdown()
                    continue
                raise DeadlineError(
                    f"{self.name} did not shut down within {deadline:g} s; it still runs",
                    hint=f"the guest ignored the request: vmkit stop --force {self.name}",
                ) from None
            return

    def reboot(
        self, *, force: bool = False, wait: bool = False, deadline: float = 90.0, reporter: Reporter = silent
    ) -> Ready | None:
        """Ask the guest to reboot; with `force`, press the reset button.

        Args:
            force: the guest is not asked.
            wait: return when it has gone down and is ready again, and say what was reached.
            deadline: seconds for that.
            reporter: told of each layer.

        Raises:
            ConflictError: it is shut off, or to be waited for and paused.
            DeadlineError: it did not reboot, or was not ready in time; the VM is left as it is.
            CancelledError: Ctrl-C; likewise.
        """
        if not self.state.active:
            raise ConflictError(f"{self.name} is {self.state.value}", hint=f"vmkit start {self.name}")
        if wait:
            from vmkit.vm.rebooting import reboot_and_wait

            memory = self.remembered()
            log = memory.console_log if memory else None
            return reboot_and_wait(
                self.domain, self.layers(), log, _promises(memory)[0], force=force, seconds=deadline, reporter=reporter
            )
        self.domain.reset() if force else self.domain.reboot()
        return None

    def pause(self) -> bool:
        """Let its vCPUs stand still. False if they do already."""
        state = self.state
        if state is DomainState.PAUSED:
            return False
        if not state.active:
            raise ConflictError(f"{self.name} is {state.value}", hint=f"vmkit start {self.name}")
        self.domain.suspend()
        return True

    def resume(self) -> bool:
        """Let paused vCPUs run again. False if they run.

        Raises:
            ConflictError: it is shut off, or it is paused because a migration holds it.
        """
        info = self.domain.info()
        if not info.state.active:
            raise ConflictError(f"{self.name} is {info.state.value}", hint=f"vmkit start {self.name}")
        if info.state is not DomainState.PAUSED:
            return False
        if info.reason in ("migration", "post-copy"):
            raise ConflictError(
                f"{self.name} is paused by a migration; resuming it here could make two copies run",
                hint="vmkit jobs shows the migration; vmkit jobs resolve settles one that was cut off",
            )
        self.domain.resume()
        return True

    def delete(self, *, force: bool = False) -> tuple[str, ...]:
        """Remove its definition, and the disks and the console log that vmkit made for it. Other disks are left alone.

        Devices that vmkit lent to it go back to the host, and addresses to their networks.

        Returns:
            What was removed.

        Raises:
            ConflictError: it runs, and `force` is not set.
        """
        from vmkit.image.place import POOL
        from vmkit.vm.access.login import forget
        from vmkit.vm.devices import has_lendings, take_back
        from vmkit.vm.reservations import Holdings
        from vmkit.vm.snapshot.volumes import volumes_of

        lends = has_lendings(self.domain)
        holdings = Holdings(self.domain)
        kept = volumes_of(self.domain)
        if self.state.active:
            if not force:
                raise ConflictError(
                    f"{self.name} is {self.state.value}",
                    hint=f"vmkit stop {self.name} first, or vmkit delete --force {self.name}",
                )
            persistent = self.domain.persistent
            memory = self.remembered()
            self.domain.destroy()
        else:
            persistent, memory = True, self.remembered()
        given_back = holdings.release()  # of a VM that is off
        if persistent:
            self.domain.undefine()
        removed = [f"domain {self.name}", *given_back]
        volumes = [*memory.volumes, *([memory.console_log] if memory.console_log else []), *kept] if memory else []
        if volumes:
            pool = self.domain.host.pool(POOL)
            pool.refresh()
            removed += [f"volume {v}" for v in volumes if pool.delete(v)]
        forget(self.uuid)
        if lends:
            take_back(self.domain.host, self.uuid)
        return tuple(removed)

    def log(self, *, last: int | None = None) -> str:
        """What the guest wrote to its serial console since it was started, or the last `last` bytes of it.

        Raises:
            RefusedError: this VM's console is not logged.
        """
        from vmkit.vm.console_log import read

        memory = self.remembered()
        if memory is None or memory.console_log is None:
            raise RefusedError(
                f"the console of {self.name} is not logged",
                hint="only VMs that vmkit made have a log; try vmkit console",
            )
        return read(self.domain.host, memory.console_log, last=last)

    def guest_exec(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes | None = None) -> Completed:
        """Run a program in the guest through its agent.

        Raises:
            EffectError: the agent does not answer, or cannot start the program.
            DeadlineError: it has not ended in time; it goes on in the guest.
        """
        from vmkit.vm import guest

        if not argv:
            raise RefusedError("no program to run", hint=f"vmkit exec {self.name} -- PROGRAM")
        return guest.run(self.domain, argv, timeout=timeout, stdin=stdin)

    def layers(self) -> tuple[Layer, ...]:
        """What 'ready' means for this VM, from what its image promises."""
        from vmkit.vm.describe import describe
        from vmkit.vm.readiness import layers_for

        memory = self.remembered()
        marker, agent = _promises(memory)
        agent = agent and self.domain.host.driver != "Xen"  # there is no channel to it
        nics = describe(self.domain.xml()).nics
        return layers_for(
            marker=marker is not None, agent=agent, network=bool(nics), console=bool(memory and memory.console_log)
        )

    def wait(
        self, *, layers: Sequence[Layer | Goal] = (), deadline: float = 60.0, reporter: Reporter = silent
    ) -> Ready:
        """Wait until it is ready.

        Args:
            layers: what to wait for; default: all that its image promises.
            deadline: seconds in all.
            reporter: told of each layer.

        Raises:
            DeadlineError: says which layer is stuck, with the last console lines; the VM is left as it is.
            ConflictError: it is shut off.
            CancelledError: Ctrl-C; the VM is left as it is.
        """
        from vmkit.vm import readiness
        from vmkit.vm.console_log import read_or_nothing

        if not self.state.active:
            raise ConflictError(f"{self.name} is {self.state.value}", hint=f"vmkit start {self.name}")
        memory = self.remembered()
        log = memory.console_log if memory else None
        return readiness.wait(
            self.domain,
            layers or self.layers(),
            seconds=deadline,
            marker=_promises(memory)[0],
            console=lambda: read_or_nothing(self.domain.host, log, last=64 * 1024),
            reporter=reporter,
        )


def _promises(memory: Remembered | None) -> tuple[str | None, bool]:
    """Console marker and agent of the VM's image, as far as the image is still known here."""
    from vmkit.image.api import Images

    if memory is None or memory.image is None:
        return None, False
    try:
        image = Images().get(memory.image)
    except NotFoundError:
        return None, False
    return image.console_marker, image.agent
