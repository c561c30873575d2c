"""Where a libvirt URI leads, and how ssh is told to go there."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkit.errors import EffectError, SpecError, UnreachableError, UnsupportedError
from vmkit.host import tree
from vmkit.system.shell import Shell, ssh_uri


@pytest.mark.parametrize("uri", ["qemu:///system", "test:///default", "qemu+unix:///system?socket=/x", "xen:///system"])
def test_a_uri_without_host_is_this_machine(uri: str) -> None:
    assert Shell.of_uri(uri) == Shell.local()


def test_parameters_of_the_uri_reach_ssh() -> None:
    shell = Shell.of_uri("qemu+ssh://root@h1:2222/system?keyfile=/k%20y&known_hosts=/kh&no_verify=1&command=/opt/ssh")
    assert shell.argv[0] == "/opt/ssh"
    joined = " ".join(shell.argv)
    for words in (
        "-i /k y",
        "UserKnownHostsFile=/kh",
        "StrictHostKeyChecking=no",
        "-p 2222",
        "-l root",
        "BatchMode=yes",
    ):
        assert words in joined
    assert shell.argv[-3:] == ("--", "h1", "exec /bin/sh")
    assert shell.remote


@pytest.mark.parametrize("uri", ["qemu://host/system", "qemu+tcp://host/system", "qemu+tls://host/system"])
def test_other_ways_do_not_lead_to_files(uri: str) -> None:
    with pytest.raises(UnsupportedError, match="libvirt alone") as caught:
        Shell.of_uri(uri)
    assert "--ssh root@host" in str(caught.value.hint)


@pytest.mark.parametrize("uri", ["qemu+ssh://-oProxyCommand=x/system", "qemu+ssh://-x@host/system", "qemu+ssh://[/x"])
def test_nothing_becomes_an_option_of_ssh(uri: str) -> None:
    with pytest.raises(SpecError):
        Shell.of_uri(uri)


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        ("host", "qemu+ssh://host/system"),
        ("root@host:22", "qemu+ssh://root@host:22/system"),
        ("a.b@[::1]:2200", "qemu+ssh://a.b@[::1]:2200/system"),
    ],
)
def test_target(target: str, uri: str) -> None:
    assert ssh_uri(target) == uri
    assert ssh_uri(target, "/a key") == f"{uri}?keyfile=/a%20key"
    assert "/a key" in Shell.of_uri(ssh_uri(target, "/a key")).argv


@pytest.mark.parametrize("target", ["", "@host", "-x", "a b", "host:0", "host:99999", "host/x", "h?command=x", "u@-h"])
def test_wrong_target(target: str) -> None:
    with pytest.raises(SpecError, match="--ssh"):
        ssh_uri(target)


def remote(tmp_path: Path, script: str) -> Shell:
    """A 'host' behind a program that stands for ssh."""
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Shell.of_uri(f"qemu+ssh://h/system?command={program}")


def test_one_round_trip_reads_a_host(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    text = tree.capture(remote(tmp_path, f"echo x >>{calls}; echo 'Welcome to h!'; exec /bin/sh"))
    assert tree.parse(text).complete
    assert tree.parse(text).number("@uid") is not None
    assert calls.read_text() == "x\n"


def test_ssh_that_is_not_let_in(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="ssh to h: Permission denied") as caught:
        tree.capture(remote(tmp_path, "echo 'Permission denied (publickey).' >&2; exit 255"))
    assert caught.value.exit_code == 3


def test_a_host_without_a_shell(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match="did not run a shell script"):
        tree.capture(remote(tmp_path, "echo 'This account is for sftp only.'; exit 1"))
