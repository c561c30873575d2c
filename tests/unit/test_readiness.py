"""What is waited for, and how a wait that fails says where it stands; over a domain that is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vmkit.errors import DeadlineError, EffectError, NotFoundError, SpecError, UnsupportedError
from vmkit.hypervisor.domain import DomainState
from vmkit.system.process import Completed
from vmkit.vm import cloud_run, guest, probes, reach, readiness
from vmkit.vm.addresses import Address, Found, Source
from vmkit.vm.describe import Nic
from vmkit.vm.readiness import Goal, Layer, complete, parse_goal

MAC = "52:54:00:00:00:0a"


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("boot", Goal(Layer.BOOT)),
        ("ip", Goal(Layer.ADDRESS)),
        ("address", Goal(Layer.ADDRESS)),
        ("cloud-init", Goal(Layer.CLOUD_INIT)),
        ("port:80", Goal(Layer.PORT, 80)),
    ],
)
def test_goals_are_read(text: str, goal: Goal) -> None:
    assert parse_goal(text) == goal


@pytest.mark.parametrize(
    "text", ["", "booted", "port", "port:", "port:0", "port:65536", "port:ssh", "ssh:22", "port:9" * 9]
)
def test_what_is_no_goal_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_goal(text)
    assert caught.value.hint


def test_what_comes_before_is_waited_for_first() -> None:
    assert complete([Goal(Layer.PORT, 80), Layer.SSH, Layer.RUNNING]) == (
        Goal(Layer.RUNNING),
        Goal(Layer.ADDRESS),
        Goal(Layer.SSH),
        Goal(Layer.PORT, 80),
    )
    with pytest.raises(SpecError, match="which port"):
        complete([Layer.PORT])


class Domain:
    """What `wait` asks a domain."""

    name = "web1"
    host = None

    def state(self) -> DomainState:
        return DomainState.RUNNING


class Finder:
    """Sources that say what a test has them say."""

    def __init__(self, *found: Found, nics: tuple[Nic, ...] = ()) -> None:
        self.found = list(found)
        self.nics = nics

    def look(self) -> Found:
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]


def at(*sources: Source, network: str = "network:net1", ip: str = "192.0.2.5") -> Found:
    return Found((Address(ip, MAC, network, sources),), {Source.AGENT: "the guest agent is not connected"})


NONE = Found((), {Source.AGENT: "not connected", Source.LEASE: "libvirt's DHCP of net1 has lent it nothing"})


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(probes, "_SLOW", 0.01)

    def run(finder: Finder, *goals: Layer | Goal, console: str = "", seconds: float = 0.3) -> Any:
        monkeypatch.setattr(probes, "Finder", lambda _domain: finder)
        domain: Any = Domain()
        return readiness.wait(domain, goals, seconds=seconds, marker="ready", console=lambda: console)

    return run


def test_the_agents_word_is_proof(wait: Callable[..., Any]) -> None:
    ready = wait(Finder(NONE, NONE, at(Source.AGENT)), Layer.ADDRESS)
    assert ready.address == "192.0.2.5"


@pytest.mark.parametrize(
    ("source", "alive", "reached"),
    [
        (Source.LEASE, True, True),
        (Source.LEASE, False, False),
        (Source.LEASE, None, True),
        (Source.RESERVATION, True, True),
        (Source.RESERVATION, None, False),
    ],
)
def test_without_the_agent_an_address_has_to_answer(
    wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, source: Source, alive: bool | None, reached: bool
) -> None:
    monkeypatch.setattr(reach, "answers", lambda *_: alive)
    if reached:
        assert wait(Finder(at(source)), Layer.ADDRESS).address == "192.0.2.5"
        return
    with pytest.raises(DeadlineError, match="stuck at 'ip'") as caught:
        wait(Finder(at(source)), Layer.ADDRESS)
    assert "address| agent: the guest agent is not connected" in caught.value.details
    assert f"address| {source.value}: 192.0.2.5, which does not answer" in caught.value.details


def test_a_stuck_wait_shows_sources_and_console(wait: Callable[..., Any]) -> None:
    with pytest.raises(DeadlineError) as caught:
        wait(Finder(NONE), Layer.SSH, console="booting\nno link on eth0\n")
    assert "stuck at 'ip'" in caught.value.message
    assert caught.value.details == (
        "address| agent: not connected",
        "address| lease: libvirt's DHCP of net1 has lent it nothing",
        "console| booting",
        "console| no link on eth0",
    )


def test_ssh_is_a_greeting(wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [None, reach.Open(""), reach.Open("220 mail"), reach.Open("SSH-2.0-dropbear")]
    monkeypatch.setattr(reach, "port", lambda *_: answers.pop(0) if len(answers) > 1 else answers[0])
    ready = wait(Finder(at(Source.AGENT)), Layer.SSH, seconds=5)
    assert [(s.layer, s.detail) for s in ready.steps][-1] == (Layer.SSH, "192.0.2.5:22")
    answers = [reach.Open("220 mail")]
    with pytest.raises(DeadlineError, match="stuck at 'ssh'") as caught:
        wait(Finder(at(Source.AGENT)), Layer.SSH)
    assert "ssh| 192.0.2.5:22 answers with '220 mail'" in caught.value.details


def test_a_port_on_a_user_network_is_asked_of_the_guest(
    wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = Finder(at(Source.AGENT, network="user", ip="10.0.2.15"))
    monkeypatch.setattr(reach, "listens", lambda _domain, number: number == 80)
    ready = wait(user, Goal(Layer.PORT, 80))
    assert ready.steps[-1].detail == "10.0.2.15:80"
    with pytest.raises(DeadlineError, match="stuck at 'port:81'"):
        wait(user, Goal(Layer.PORT, 81))

    def fails(*_: object) -> bool:
        raise EffectError("the agent does not answer")

    monkeypatch.setattr(reach, "listens", fails)
    with pytest.raises(UnsupportedError, match="cannot be seen from outside"):
        wait(user, Goal(Layer.PORT, 80))


def test_ssh_on_a_user_network_goes_through_the_forward(
    wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def port(_host: object, ip: str, number: int) -> reach.Open:
        asked.append((ip, number))
        # QEMU takes the connection before the guest does.
        return reach.Open("SSH-2.0-x" if len(asked) > 2 else "")

    monkeypatch.setattr(reach, "port", port)
    nics = (Nic(MAC, "virtio", "user", None, ("tcp:0.0.0.0:2222:22",)),)
    ready = wait(Finder(at(Source.AGENT, network="user"), nics=nics), Layer.SSH, seconds=5)
    assert ready.steps[-1].detail == "0.0.0.0:2222"
    assert asked == [("127.0.0.1", 2222)] * 3


RESULTS = [
    (Completed(0, '{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}', ""), "done"),
    (Completed(0, '{"v1": {', ""), ""),
    (Completed(4, "", ""), "disabled"),
    (Completed(5, "", ""), ""),
]


@pytest.mark.parametrize(("answer", "said"), RESULTS)
def test_cloud_init_says_that_it_is_done(monkeypatch: pytest.MonkeyPatch, answer: Completed, said: str) -> None:
    domain: Any = Domain()
    monkeypatch.setattr(guest, "run", lambda *_args, **_kw: answer)
    assert cloud_run.finished(domain, "") == said


def test_cloud_init_that_failed_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    domain: Any = Domain()
    failed = Completed(0, '{"v1": {"errors": ["no such module: x"]}}', "")
    monkeypatch.setattr(guest, "run", lambda *_args, **_kw: failed)
    with pytest.raises(EffectError, match="ended with errors") as caught:
        cloud_run.finished(domain, "")
    assert caught.value.details == ("no such module: x",)
    monkeypatch.setattr(guest, "run", lambda *_args, **_kw: Completed(3, "", ""))
    with pytest.raises(NotFoundError, match="has no cloud-init"):
        cloud_run.finished(domain, "")


def test_without_an_agent_the_console_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Completed:
        raise EffectError("no agent")

    domain: Any = Domain()
    monkeypatch.setattr(guest, "run", fails)
    assert cloud_run.finished(domain, "booting") == ""
    line = "Cloud-init v. 25.1.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud"
    assert cloud_run.finished(domain, f"x\n{line}\n") == "done"
