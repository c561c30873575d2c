"""Changing VMs, as the Python API and the command line see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmkit.errors import ConflictError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent
from vmkit.system.files import home, locked
from vmkit.vm.change.model import Delta, Effect, RemoveDisk
from vmkit.vm.change.report import Applied, Difference, Options, Row
from vmkit.vm.machine import Vm
from vmkit.vm.spec import Document, VmSpec, load_document, parse

if TYPE_CHECKING:
    from vmkit.network.api import Networks
    from vmkit.vm.change.session import Ready
    from vmkit.vm.change.shape import Have

Source = Path | str | Document | Sequence[VmSpec]


@dataclass(slots=True)
class _Vm:
    """One VM of a document on its way."""

    spec: VmSpec
    domain: Domain | None
    have: Have | None = None
    delta: Delta | None = None
    ready: Ready | None = field(default=None)


class Changes:
    """Changing the VMs of one host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def diff(self, source: Source, *, reporter: Reporter = silent) -> list[Difference]:
        """What `apply` would do. Nothing is changed.

        Raises:
            SpecError, ConflictError: `apply` would refuse.
        """
        del reporter
        document = _document(source)
        return [*self._networks_diff(document), *(_difference(v) for v in self._vms(document.vms))]

    def apply(
        self,
        source: Source,
        *,
        options: Options | None = None,
        tell: Callable[[list[Difference]], None] | None = None,
        wait: bool = False,
        deadline: float = 90.0,
        reporter: Reporter = silent,
    ) -> list[Applied]:
        """Bring about what a file (or a list of specs) says.

        Networks and VMs that are missing are made, those that differ are changed, VMs that are shut off are started.
        All is checked before the first is touched. A change of a VM that fails is set back.

        Args:
            source: file, document or specs.
            options: how far it may go.
            tell: is given the differences before anything is touched.
            wait: as in `options`, for those who need nothing else of it.
            deadline: the same.
            reporter: told what happens.

        Raises:
            ConflictError: a VM would have to be made anew, and `options.recreate` is not set; nothing was touched.
            otherwise as `create` and `change`.
        """
        chosen = options or Options(wait=wait, deadline=deadline)
        document = _document(source)
        networks = self._networks_diff(document)
        vms = self._vms(document.vms)
        if not chosen.recreate:
            for vm in vms:
                _refuse_recreation(vm)
        if tell:
            tell([*networks, *(_difference(v, chosen) for v in vms)])
        done = [self._apply_network(n, reporter) for n in document.networks]
        self._prepare(vms, chosen, reporter, warn=tell is None)
        made = self._create([v.spec for v in vms if v.domain is None], chosen, reporter)
        return [*done, *(made.get(v.spec.name) or self._bring(v, chosen, reporter) for v in vms)]

    def change(
        self,
        name: str,
        edit: Callable[[dict[str, Any], Have], dict[str, Any]],
        *,
        options: Options | None = None,
        plan: bool = False,
        reporter: Reporter = silent,
    ) -> Applied | Difference:
        """Change one VM.

        Args:
            name: of the VM.
            edit: takes the spec as plain data and the VM as it is; returns the new spec.
            options: how far it may go; VMs that are shut off stay so unless it says otherwise.
            plan: only say what would be done.
            reporter: told what happens.

        Raises:
            NotFoundError: there is no such VM. SpecError: the new spec is wrong. Otherwise as `apply`.
        """
        from vmkit.vm.change.look import look
        from vmkit.vm.spec import dump

        chosen = options or Options(start=False)
        domain = self._connect().domain(name)
        have = look(domain)
        wanted = parse(edit(dump(have.spec), have))
        (vm,) = self._vms([wanted])
        if plan:
            return _difference(vm, chosen)
        if not chosen.recreate:
            _refuse_recreation(vm)
        self._prepare([vm], chosen, reporter)
        return self._bring(vm, chosen, reporter)

    def spec(self, name: str) -> dict[str, Any]:
        """The spec of a VM as plain data, as a file for `apply` would have it. Secrets are replaced by their digest."""
        import msgspec

        from vmkit.values import to_plain
        from vmkit.vm.change.look import look

        spec = look(self._connect().domain(name)).spec
        plain: dict[str, Any] = to_plain(msgspec.to_builtins(spec, enc_hook=_exactly, str_keys=True))
        return plain

    def rename(self, name: str, new: str, *, restart: bool = False, deadline: float = 90.0) -> str:
        """Give a VM another name; returns what else was changed, in words.

        Args:
            name: old name.
            new: new name.
            restart: shut it down before, and start it after, if it runs.
            deadline: seconds for the guest to shut down.

        Raises:
            ConflictError: it runs, or there is a VM of the new name. SpecError: that cannot be a name.
        """
        from vmkit.vm.change.rename import rename

        return rename(self._connect(), name, new, restart=restart, deadline=deadline)

    # -- networks

    @property
    def _networks(self) -> Networks:
        from vmkit.network.api import Networks

        return Networks(self._connect)

    def _networks_diff(self, document: Document) -> list[Difference]:
        found = []
        for spec in document.networks:
            differences = self._networks.check(spec)
            if differences is None:
                found.append(Difference(spec.name, "network", "create"))
                continue
            rows = tuple(
                Row(d.field, _short(d.before), _short(d.after), _NETWORK_EFFECTS.get(d.effect.value, d.effect.value))
                for d in differences
            )
            found.append(Difference(spec.name, "network", "change" if rows else "none", rows))
        return found

    def _apply_network(self, spec: Any, reporter: Reporter) -> Applied:
        done = self._networks.apply(spec, reporter=reporter)
        return Applied(done.name, "network", done.action)

    # -- VMs

    def _vms(self, specs: Sequence[VmSpec]) -> list[_Vm]:
        """Each VM with what differs. Raises where a file asks for what cannot be."""
        from vmkit.vm.change.diff import compare
        from vmkit.vm.change.look import look
        from vmkit.vm.spec import remembered_form

        existing = {d.name: d for d in self._connect().domains()}
        found = []
        for spec in specs:
            vm = _Vm(spec, existing.get(spec.name))
            if vm.domain is not None:
                vm.have = look(vm.domain)
                vm.delta = compare(parse(remembered_form(spec)), vm.have)
            found.append(vm)
        return found

    def _prepare(self, vms: Sequence[_Vm], options: Options, reporter: Reporter, *, warn: bool = True) -> None:
        from vmkit.vm.change.session import prepare

        for vm in vms:
            if vm.domain is not None and vm.have is not None and vm.delta is not None and vm.delta.changes:
                _refuse_saved(vm.domain)
                if not vm.delta.recreate:
                    vm.ready = prepare(vm.domain, vm.have, vm.delta, reporter)
                for text in _warnings(vm.delta, vm.have, options) if warn else ():
                    reporter(Note(text, warning=True))

    def _create(self, specs: Sequence[VmSpec], options: Options, reporter: Reporter) -> dict[str, Applied]:
        from vmkit.vm import many

        if not specs:
            return {}
        outcome = many.create(self._connect(), specs, wait=options.wait, deadline=options.deadline, reporter=reporter)
        return {
            name: Applied(
                name,
                "vm",
                "created",
                accelerator=made.accelerator,
                seconds=made.ready.seconds if made.ready else None,
                password=made.password,
            )
            for name, made in outcome.check("creating VMs").items()
        }

    def _bring(self, vm: _Vm, options: Options, reporter: Reporter) -> Applied:
        """Change one VM that exists, and have it run."""
        from vmkit.vm.change import session

        assert vm.domain is not None and vm.have is not None and vm.delta is not None  # noqa: PT018, S101 - it exists
        delta, domain = vm.delta, vm.domain
        with _held(domain):
            if delta.recreate:
                from vmkit.vm.change.recreate import recreate

                return recreate(domain, vm.have, vm.spec, _rows(delta), options, reporter)
            deleted: list[str] = []
            gone = _volumes_of_gone(delta, vm.have)
            delete = [v for v, free in gone.items() if free] if options.delete_disks else []
            if vm.ready is not None:
                deleted = session.carry_out(domain, vm.have, vm.ready, delete=delete, reporter=reporter)
            pending = _pending(delta)
            done = Applied(
                domain.name,
                "vm",
                "changed" if delta.changes else "unchanged",
                _rows(delta),
                pending,
                tuple(v for v in gone if v not in deleted),
                tuple(deleted),
            )
            return _run(Vm(domain), done, options, reporter)


def _run(vm: Vm, done: Applied, options: Options, reporter: Reporter) -> Applied:
    """Start it, or shut it down and start it, as far as that was asked for."""
    state = vm.state
    if done.pending and options.reboot and state.active:
        vm.stop(deadline=max(options.deadline, 60.0))
        vm.start(reporter=reporter)
        done = replace(done, pending=(), action=done.action if done.changes else "rebooted")
    elif not state.active and options.start:
        vm.start(reporter=reporter)
        done = replace(done, action=done.action if done.changes else "started")
    if options.wait and vm.state is not DomainState.PAUSED and vm.state.active:
        done = replace(done, seconds=vm.wait(deadline=options.deadline, reporter=reporter).seconds)
    return done


def _held(domain: Domain) -> Any:
    """One change of a VM at a time, by whatever process of this machine."""
    return locked(
        home() / "locks" / f"change-{domain.uuid}.lock", busy=f"{domain.name} is being changed by another vmkit"
    )


def _document(source: Source) -> Document:
    if isinstance(source, Document):
        return source
    if isinstance(source, Path | str):
        return load_document(source)
    return Document((), tuple(source))


def _rows(delta: Delta) -> tuple[Row, ...]:
    return tuple(Row(c.path, c.old, c.new, c.effect.value, c.reason) for c in delta.changes)


def _warnings(delta: Delta, have: Have, options: Options) -> tuple[str, ...]:
    """What becomes of the data of disks that go."""
    said = []
    for volume, free in _volumes_of_gone(delta, have).items():
        gone = options.delete_disks and free
        said.append(f"{delta.name}: the data in the volume {volume} {'is deleted' if gone else 'stays there'}")
    return tuple(said)


def _difference(vm: _Vm, options: Options | None = None) -> Difference:
    if vm.delta is None or vm.have is None:
        return Difference(vm.spec.name, "vm", "create")
    delta = vm.delta
    if delta.recreate:
        action = "re-create"
    elif delta.changes:
        action = "change"
    elif vm.have.live is None:
        action = "start"
    else:
        action = "reboot" if delta.pending else "none"
    return Difference(
        delta.name, "vm", action, _rows(delta), delta.pending, _warnings(delta, vm.have, options or Options())
    )


def _pending(delta: Delta) -> tuple[str, ...]:
    now = [c.path.partition("[")[0].partition(".")[0] for c in delta.changes if c.effect is Effect.REBOOT]
    return tuple(sorted({*now, *delta.pending}))


def _volumes_of_gone(delta: Delta, have: Have) -> dict[str, bool]:
    """Volumes of disks that go, each with whether nothing uses it any more after that."""
    acts = [c.act for c in delta.changes if isinstance(c.act, RemoveDisk)]
    named = {(a.source or "").rpartition("/")[2]: a.live or have.live is None for a in acts}
    return {v: free for v, free in named.items() if v in have.volumes}


def _refuse_recreation(vm: _Vm) -> None:
    if vm.delta is None or not vm.delta.recreate:
        return
    why = [f"{c.path}: {c.old} -> {c.new} ({c.reason})" for c in vm.delta.changes if c.effect is Effect.RECREATE]
    raise ConflictError(
        f"{vm.delta.name} would have to be made anew; nothing was touched",
        hint="vmkit apply --recreate does that: what is on its image's disk is lost, disks without an image stay",
        details=tuple(why),
    )


def _refuse_saved(domain: Domain) -> None:
    """Memory that was saved belongs to the VM as it was."""
    from vmkit.hypervisor.snapshot import saved

    if domain.host.driver == "QEMU" and saved(domain):
        raise ConflictError(
            f"the memory of {domain.name} is saved, and goes on with the VM as it was",
            hint=f"vmkit restore {domain.name} lets it go on; then it can be changed",
        )


def _exactly(size: Any) -> str | int:
    """A size as a person would write it; a number of bytes where it has to be one."""
    text = str(size)
    return text if "." not in text else int(size)


def _short(value: object) -> str:
    text = "-" if value in (None, "", (), []) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_NETWORK_EFFECTS = {"live": Effect.LIVE.value, "re-creation": Effect.RECREATE.value}
