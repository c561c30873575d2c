"""Looking at a host and judging it: the acting half. Facts and advice are pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmkit.errors import VmkitError
from vmkit.host import tree
from vmkit.host.advice import advise
from vmkit.host.facts.host import HostFacts, read
from vmkit.host.facts.libvirt import Answers
from vmkit.host.facts.probe import ProbeFacts
from vmkit.host.facts.virt import Environment
from vmkit.host.finding import Finding
from vmkit.host.probe import ARCH, known_verdict
from vmkit.host.summary import summary
from vmkit.hypervisor.host import Host
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.shell import Shell

VERSION: Final = 1
"""Of the report's form, as templates/doctor.schema.json describes it. Fields may be added without a new one."""

Prove = Callable[[Host, Reporter], ProbeFacts]
"""Asks the probe guest of a host where libvirt offers KVM."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen of a host, and what is to be said about it.

    Attributes:
        version: of this form.
        host: who was looked at.
        facts: everything that is known.
        accelerator: what runs guests here: 'kvm', 'tcg' (emulation), 'xen'; None if that is not known.
        findings: the most serious first.
    """

    version: int
    host: str
    accelerator: str | None
    facts: HostFacts
    findings: tuple[Finding, ...]

    def summary(self) -> tuple[tuple[str, str], ...]:
        """The facts in a few lines: label and text of each."""
        return summary(self.facts)


def examine(
    shell: Shell, connect: Callable[[], Host], uri: str, prove: Prove | None, reporter: Reporter = silent
) -> Report:
    """Look at a host.

    Args:
        shell: where its files are read.
        connect: opens its libvirt.
        uri: what that opens, for the report.
        prove: asks the probe guest; None leaves it out.
        reporter: told what is being looked at.

    Raises:
        UnreachableError: the host does not let us in. That libvirt does not answer is a finding.
        EffectError: it runs no POSIX shell.
    """
    seconds = stopwatch()
    reporter(Started("host", f"looking at {shell.where}"))
    text = tree.capture(shell)
    reporter(Finished("host", seconds(), f"{len(text)} bytes read"))
    answers, probe = _ask(connect, uri, prove, reporter)
    return diagnose(shell.where, text, answers, probe)


def diagnose(host: str, text: str, answers: Answers, probe: ProbeFacts) -> Report:
    """The report on a captured host. Pure."""
    facts = read(tree.parse(text), answers, probe)
    return Report(VERSION, host, accelerator(facts), facts, advise(facts))


def accelerator(facts: HostFacts) -> str | None:
    """What runs guests on a host. Pure. What the probe guest did counts, and not that /dev/kvm is there."""
    if facts.virt.environment is Environment.XEN_DOM0:
        return "xen"
    if facts.libvirt.driver not in ("QEMU", ""):
        return None
    if facts.probe.works is None:
        return "tcg" if facts.kvm.device.present is False and facts.libvirt.driver == "QEMU" else None
    return "kvm" if facts.probe.works else "tcg"


def _ask(connect: Callable[[], Host], uri: str, prove: Prove | None, reporter: Reporter) -> tuple[Answers, ProbeFacts]:
    unknown = ProbeFacts(None, "libvirt does not answer")
    seconds = stopwatch()
    reporter(Started("libvirt", uri))
    try:
        host = connect()
        answers = answers_of(host, uri)
    except VmkitError as e:
        reporter(Finished("libvirt", seconds(), "does not answer"))
        return Answers(uri, error=e.message), unknown
    reporter(Finished("libvirt", seconds(), "answered"))
    if answers.driver != "QEMU":
        return answers, ProbeFacts(None, f"not asked of libvirt's driver {answers.driver}")
    if "type='kvm'" not in answers.capabilities:
        return answers, ProbeFacts(False, "libvirt offers no KVM here")
    if host.node()[0] != ARCH:
        return answers, ProbeFacts(None, f"the probe guest is for {ARCH} only")
    if prove is not None:
        return answers, prove(host, reporter)
    try:
        known = known_verdict(host)
    except VmkitError:
        known = None
    return answers, ProbeFacts(known.works, known.reason) if known else ProbeFacts(None, "no probe guest was started")


def answers_of(host: Host, uri: str) -> Answers:
    """What libvirt says of a host.

    Raises:
        VmkitError: it went away.
    """
    capabilities = host.capabilities()
    domain = ""
    if host.driver in ("QEMU", "Xen"):
        best = "kvm" if "type='kvm'" in capabilities else "qemu" if host.driver == "QEMU" else "xen"
        domain = _domain_capabilities(host, best)
    return Answers(uri, None, host.driver, host.libvirt_version(), host.hypervisor_version(), capabilities, domain)


def _domain_capabilities(host: Host, virt_type: str) -> str:
    """Those of a q35 machine on x86, where QEMU's own default is the old 'pc', which has no secure boot."""
    arch = host.node()[0]
    for machine in ("q35", None) if arch == ARCH and virt_type != "xen" else (None,):
        try:
            return host.domain_capabilities(virt_type=virt_type, arch=arch, machine=machine)
        except VmkitError:
            continue
    return ""  # a driver without them; the facts say unknown then
