"""How fast guests are on a host, beside the host itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vmkit.errors import SpecError, UnsupportedError
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent
from vmkit.values import show_duration

if TYPE_CHECKING:
    from vmkit.bench.card import Card
    from vmkit.bench.layout import Facts
    from vmkit.bench.session import Samples
    from vmkit.host.doctor import Report
    from vmkit.host.measured import Measured, Mode, Result
    from vmkit.image.manifest import Image


class Doctor(Protocol):
    """What looks at a host: `Client.doctor`."""

    def __call__(self, *, probe: bool, reporter: Reporter) -> Report:
        """The report."""


class Bench:
    """Measurements of one host.

    Args:
        connect: returns the open connection to it.
        doctor: looks at it.
    """

    def __init__(self, connect: Callable[[], Host], doctor: Doctor) -> None:
        self._connect, self._doctor = connect, doctor

    def last(self) -> Measured | None:
        """The last run on this machine; None if there was none.

        Raises:
            SpecError: its file is damaged.
        """
        from vmkit.host import measured

        return measured.load()

    def host(
        self,
        *,
        modes: tuple[str, ...] = (),
        workloads: tuple[str, ...] = (),
        seconds: int = 5,
        repeats: int = 3,
        shadow: bool = False,
        reporter: Reporter = silent,
    ) -> Measured:
        """Measure this machine and guests on it, and keep the figures in HOME/bench/host.json.

        Args:
            modes: which of `vmkit.host.measured.Mode`; all for none.
            workloads: names of workloads or areas; all for none.
            seconds: of one sample, 1 to 600.
            repeats: samples of each, 1 to 99.
            shadow: KVM's module may be loaded again with shadow paging, while no VM runs; it is loaded as it was
                afterwards, also by the next command where this one is killed.
            reporter: told of each step.

        Raises:
            SpecError: a mode or a workload is unknown, or nothing is left to measure.
            UnsupportedError: the host is another machine, or not one with QEMU on x86-64.
            CancelledError: Ctrl-C; nothing is left.
        """
        from vmkit.bench import native, session
        from vmkit.bench import workloads as catalogue
        from vmkit.bench.layout import lay_out
        from vmkit.host import measured
        from vmkit.host.measured import Area, Mode
        from vmkit.system.files import ensure_dir, home, locked, write_atomic

        chosen = catalogue.chosen(workloads)
        wanted = _modes(modes)
        _within("seconds", seconds, 600)
        _within("repeats", repeats, 99)
        host = self._connect()
        if not host.local or host.driver != "QEMU":
            raise UnsupportedError(
                f"{host.uri} is not QEMU on this machine; a host measures itself",
                hint="run vmkit bench host on that machine",
            )
        with locked(home() / "bench" / "lock", busy="another process measures this machine"):
            report = self._doctor(probe=True, reporter=reporter)
            over_network = Mode.VF in wanted and any(w.area is Area.NETWORK for w in chosen)
            card = _card(host) if over_network else ""
            layout = lay_out(_facts(host, report, card), wanted, chosen, shadow=shadow)
            least = session.estimate(layout, chosen, wanted, seconds) * repeats
            reporter(Note(f"the samples alone take {show_duration(least)}; starting guests and programs comes on top"))
            image = _image(reporter)
            run = session.Session(
                host, image.name, native.Native(image), layout, chosen, seconds, repeats, wanted, reporter
            )
            run.run()
            found = measured.Measured(
                when=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=float(seconds),
                machine=_machine(report),
                tools={"image": image.source},
                results=_results(run.samples),
                skipped=(*run.skipped, *run.samples.skipped()),
            )
            ensure_dir(measured.path().parent)
            write_atomic(measured.path(), json.dumps(measured.to_plain(found), indent=1) + "\n")
        return found

    def picture(self, measured: Measured, file: Path) -> None:
        """Draw the figures beside the classic ones, as SVG or, by the file's name, PNG.

        Raises:
            SpecError, UnsupportedError: as `check_picture`.
        """
        from vmkit.bench.picture import draw, raster
        from vmkit.system.files import write_atomic

        self.check_picture(file)
        write_atomic(file, draw(measured) if file.suffix == ".svg" else raster(measured))

    @staticmethod
    def check_picture(file: Path) -> None:
        """Raise if a picture cannot be written to a file of this name.

        Raises:
            SpecError: it is named neither .svg nor .png.
            UnsupportedError: the library that draws is missing.
        """
        from vmkit.plotting import check_picture

        check_picture(file, (".svg", ".png"), "--picture")


def _modes(names: tuple[str, ...]) -> tuple[Mode, ...]:
    from vmkit.host.measured import Mode

    known = [m.value for m in Mode]
    for name in names:
        if name not in known:
            raise SpecError(f"there is no mode '{name}'", path="modes", hint=f"there are: {', '.join(known)}")
    return tuple(m for m in Mode if not names or m.value in names)


def _within(path: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise SpecError(f"{value} is not between 1 and {most}", path=path)


def _card(host: Host) -> Card | str:
    """The card that can lend a virtual function, or why there is none."""
    from vmkit.bench.card import find_card
    from vmkit.device.api import see
    from vmkit.errors import VmkitError
    from vmkit.system.netlink import Links

    try:
        seen = see(host)
        with Links() as links:
            return find_card(seen.facts, seen.uses(), links.networks())
    except VmkitError as e:
        return e.message


def _facts(host: Host, report: Report, card: Card | str) -> Facts:
    from vmkit.bench.layout import Facts
    from vmkit.system import kvm_module

    facts = report.facts
    return Facts(
        kvm=facts.probe.works is True,
        why_not_kvm=facts.probe.reason,
        paging=facts.kvm.paging,
        module=kvm_module.loaded(),
        others=tuple(d.name for d in host.domains() if d.state().active),
        vhost=facts.kvm.vhost_net.present is True,
        root=os.geteuid() == 0,
        local=host.local,
        card=None if isinstance(card, str) else card,
        why_not_card=card if isinstance(card, str) else "",
    )


def _machine(report: Report) -> dict[str, str]:
    facts = report.facts
    under = facts.virt.under or facts.virt.container
    return {
        "cpu": facts.cpu.model,
        "cpus": str(facts.cpu.threads),
        "kernel": facts.system.kernel,
        "os": facts.system.os,
        "qemu": facts.libvirt.hypervisor or "",
        "libvirt": facts.libvirt.libvirt or "",
        "module": facts.kvm.module or "",
        "virtual": under or "",
    }


def _image(reporter: Reporter) -> Image:
    from vmkit.errors import NotFoundError
    from vmkit.image import bench
    from vmkit.image.api import Images

    images = Images()
    try:
        return images.get(bench.NAME)
    except NotFoundError:
        reporter(Note("building the image 'bench' once: the guest with the programs that measure"))
        return images.build_bench(reporter=reporter)


def _results(samples: Samples) -> tuple[Result, ...]:
    """The samples as results, each with the native median of its workload."""
    import statistics

    from vmkit.host.measured import Mode, Result

    native = {(a, w): statistics.median(v) for (a, w, m, _), v in samples.values.items() if m is Mode.NATIVE}
    return tuple(
        Result(area, name, mode, accelerator, samples.units[name], tuple(values), native.get((area, name)))
        for (area, name, mode, accelerator), values in samples.values.items()
    )
