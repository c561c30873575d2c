"""Labs: throw-away hosts, brought up, listed, entered and torn down."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError
from vmkit.lab.kinds import KINDS, describe, kind_of
from vmkit.lab.layout import Layout
from vmkit.lab.model import Lab, LabHost, Ssh
from vmkit.lab.reality import guests, inside, labs_with_processes, machines, processes
from vmkit.lab.state import LabState, Phase, load, save
from vmkit.lab.teardown import erase, exclusive, settled, tear_down
from vmkit.progress import Note, Reporter, silent
from vmkit.system.files import ensure_dir, home
from vmkit.system.journal import journalled
from vmkit.system.process import Completed, replace, run
from vmkit.values import check_name, quoted

if TYPE_CHECKING:
    from vmkit.lab.cache import Cached
    from vmkit.lab.nested.image import HostImage
    from vmkit.lab.nested.options import HostOptions

__all__ = ["Hosts", "Lab", "LabHost", "Labs", "Ssh"]

Hosts = list[LabHost]
Cache = list["Cached"]


class Labs:
    """The labs of this machine."""

    # -- up and down

    def up(
        self,
        kind: str = "pair",
        name: str | None = None,
        hosts: int | None = None,
        reporter: Reporter = silent,
        options: HostOptions | None = None,
    ) -> Lab:
        """Bring a lab up; one that is up already is returned as it is.

        What an earlier attempt left behind when it was killed, or what a reboot left, is removed first.

        Args:
            kind: 'pair': hosts in namespaces of this machine; 'kvm', 'xen': virtual machines that are KVM
                hosts, or Xen hosts with a dom0.
            name: by default the kind.
            hosts: how many; a pair has 2 to 8 (default 2), a lab of nested hosts 1 to 4 (default 1).
            reporter: told of each step.
            options: what nested hosts have (KvmOptions, XenOptions); None for the defaults, or those of one that is up.

        Raises:
            RefusedError: not root, or this machine lacks the space or the memory.
            SpecError: no such kind, no such name, or a number of hosts that cannot be.
            ConflictError: another process works on the lab, it is up with other options, or it is broken and guests
                run in it.
            UnsupportedError: a program is missing, or this machine cannot run such hosts.
            EffectError, DeadlineError: it could not be brought up; nothing is left of it.
        """
        functions = kind_of(kind)
        layout = _layout(name or kind)
        wish = functions.wish(hosts, options)
        _need_root(functions.needs_root(), f"vmkit lab up {kind}")
        functions.check_place(layout)
        with exclusive(layout, wait=90.0):
            if ready := self._ready(layout, reporter):
                return self._same(layout, ready, kind, wish if options or hosts else None)
            state = LabState(layout.name, kind, secrets.token_hex(8), _now(), Phase.BUILDING)
            with journalled("lab", layout.name, "up", folder=str(layout.folder), token=state.token):
                try:
                    ensure_dir(layout.folder)
                    save(layout, state)
                    functions.build(layout, state, wish, reporter)
                except BaseException:
                    erase(layout)
                    raise
            return describe(layout, load(layout) or state)

    def down(self, name: str, reporter: Reporter = silent) -> None:
        """Tear a lab down: its guests, processes, network and files. Works on a lab in any condition.

        Raises:
            RefusedError: not root.
            NotFoundError: there is nothing of that name.
            ConflictError: another process works on it.
            EffectError: something could not be removed; it can be tried again.
        """
        layout = _layout(name)
        if layout.folder in settled:
            settled.discard(layout.folder)
            reporter(Note(f"nothing is left of the lab {name}"))
            return
        if not any(p.exists() for p in (layout.folder, layout.lock)) and not processes(layout):
            raise _unknown(name, self._names())
        state = load(layout)
        why = kind_of(state.kind if state and state.kind in KINDS else "pair").needs_root()
        _need_root(why, f"vmkit lab down {name}")
        with exclusive(layout, wait=5.0):
            tear_down(layout, reporter)

    def down_all(self, reporter: Reporter = silent) -> Sequence[str]:
        """Tear down every lab, also one whose files are gone; returns their names. The errors are those of `down`."""
        names = sorted({*self._names(), *labs_with_processes(home() / "lab")})
        for name in names:
            self.down(name, reporter)
        return names

    # -- what there is

    def list(self) -> Hosts:
        """Every host of every lab, by name."""
        return [host for name in self._names() for host in self.get(name).hosts]

    def get(self, name: str) -> Lab:
        """One lab, as it is now.

        Raises:
            NotFoundError: there is none of that name.
        """
        layout = _layout(name)
        if not layout.folder.is_dir():
            raise _unknown(name, self._names())
        state = load(layout)
        if state is None:
            return Lab(name, "pair", "broken", "its state file is missing", layout.folder, ())
        return describe(layout, state)

    def find(self, host: str) -> LabHost:
        """A host by 'LAB/HOST', or by its own name where only one lab has such a host.

        Raises:
            NotFoundError: there is none.
            ConflictError: several labs have one.
        """
        lab, _, hostname = host.rpartition("/")
        if lab:
            return self.get(lab).host(hostname)
        found = [h for h in self.list() if h.hostname == hostname]
        if not found:
            raise NotFoundError(f"no lab has a host {quoted(host)}", hint="see: vmkit lab list; vmkit lab up pair")
        if len(found) > 1:
            names = " or ".join(h.name for h in found)
            raise ConflictError(f"several labs have a host {quoted(host)}", hint=f"say which: {names}")
        return found[0]

    # -- what is kept

    def image(self, kind: str = "kvm", reporter: Reporter = silent) -> HostImage:
        """The image of nested hosts: paths of disk, kernel and initramfs, and the kernel command line.

        Nobody may write to them: machines have overlays of the disk. The image is built if it is not there, which takes
        minutes.

        Raises:
            SpecError: that kind has none.
            RefusedError: not root, where it has to be built; or no space.
            UnsupportedError: a program is missing.
            EffectError, DeadlineError: the build failed; nothing is left of it.
        """
        from vmkit.lab.nested.image import build_image
        from vmkit.lab.nested.kind import NestedKind

        found = kind_of(kind)
        if not isinstance(found, NestedKind):
            raise SpecError(f"labs of the kind {quoted(kind)} have no image", path="kind", hint="kvm and xen have one")
        return build_image(found.flavour(), reporter)

    def cached(self) -> Cache:
        """What is kept to make labs fast: host images, saved machines, an older QEMU."""
        from vmkit.lab import cache

        return cache.entries(self._uses())

    def prune(self, *, everything: bool = False, reporter: Reporter = silent) -> Cache:
        """Remove what is kept and no lab stands on; returns what was removed.

        Args:
            everything: also what would be used again by this version. Without it only host images of other recipes,
                and machines saved from them, go.
            reporter: told of what stays although it could go.
        """
        from vmkit.lab.nested.prune import prune

        return prune(self.cached(), everything, reporter)

    def _uses(self) -> dict[str, tuple[str, ...]]:
        """Names in the cache -> labs that stand on them."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self._names():
            state = load(_layout(name))
            for used in (state.plan or {}).get("uses", ()) if state else ():
                found[used] = (*found.get(used, ()), name)
        return found

    # -- running things in it

    def exec(self, host: str, argv: Sequence[str]) -> None:
        """Become a program that runs in a host, as root, with this process's terminal, streams and working group.

        It does not return. The exit status is the program's own; 127 if the host has no such program.

        Raises:
            RefusedError: not root.
            NotFoundError: no such host.
            ConflictError: the host does not run.
        """
        replace(self._entering(host, argv, terminal=sys.stdin.isatty() and sys.stdout.isatty()))

    def run(
        self, host: str, argv: Sequence[str], *, stdin: str | bytes | None = None, timeout: float = 120.0
    ) -> Completed:
        """Run a program in a host to its end and return what it left; any exit status is an answer.

        Raises:
            RefusedError: not root.
            NotFoundError: no such host.
            ConflictError: the host does not run.
            DeadlineError: it did not end within `timeout` seconds.
        """
        return run(self._entering(host, argv, terminal=False), stdin=stdin, timeout=timeout, check=False)

    def _entering(self, host: str, argv: Sequence[str], *, terminal: bool) -> Sequence[str]:
        if not argv:
            raise SpecError("no program was named", path="CMD", hint=f"vmkit lab exec {host} -- virsh list")
        found = self.find(host)
        functions = kind_of(found.kind)
        _need_root(functions.needs_root(), f"vmkit lab exec {host} -- ...")
        if found.pid is None:
            problem = f"the host {found.name} is {found.state}: {found.problem}"
            raise ConflictError(problem, hint=_again(found.lab, found.kind))
        return functions.entering(_layout(found.lab), found, argv, terminal)

    # -- parts

    @staticmethod
    def _ready(layout: Layout, reporter: Reporter) -> Lab | None:
        """The lab if it is up. Else what is there of it is removed, so that it can be made."""
        if not layout.folder.exists() and not processes(layout):
            return None
        state = load(layout)
        if state is not None and state.phase is Phase.UP:
            lab = describe(layout, state)
            if lab.state == "up":
                reporter(Note(f"the lab {lab.name} is up already"))
                return lab
            if running := guests(processes(layout)):
                what = "hosts" if machines(layout) else "guests"
                raise ConflictError(
                    f"the lab {lab.name} is broken ({lab.problem}), and {len(running)} {what} still run in it",
                    hint=_again(lab.name, lab.kind),
                )
        reporter(Note(f"removing what an earlier lab {layout.name} left behind", warning=True))
        erase(layout)
        return None

    @staticmethod
    def _same(layout: Layout, lab: Lab, kind: str, wish: object) -> Lab:
        """The lab that is up, if it is of the kind and as is wished for."""
        state = load(layout)
        if lab.kind != kind:
            hint = f"choose another name: vmkit lab up {kind} --name NAME"
            raise ConflictError(f"the lab {lab.name} is up, and is of the kind {lab.kind}", hint=hint)
        if state is not None and wish is not None:
            kind_of(kind).check_same(state, wish)
        return lab

    @staticmethod
    def _names() -> Sequence[str]:
        if inside():
            raise _inside()
        folder = home() / "lab"
        try:
            return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []


def _layout(name: str) -> Layout:
    if inside():
        raise _inside()
    return Layout.of(home(), check_name(name))


def _need_root(why: str, command: str) -> None:
    if why and os.geteuid() != 0:
        raise RefusedError(why, hint=f"sudo {command}")


def _inside() -> RefusedError:
    return RefusedError(
        "this is a host of a lab, and labs are not seen from inside", hint="run it on the machine itself"
    )


def _unknown(name: str, known: Sequence[str]) -> NotFoundError:
    there = f"there is: {', '.join(known)}" if known else "there is none; make one: vmkit lab up pair"
    return NotFoundError(f"no lab named {quoted(name)}", hint=there)


def _again(name: str, kind: str) -> str:
    return f"vmkit lab down {name} && vmkit lab up {kind} --name {name}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
