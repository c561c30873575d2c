"""Two connections with a fuse: the one to the source is dead before anybody sees that the one to the target broke."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from vmkit.system.fuse import folder_name, fused, swept

Process = subprocess.Popen[bytes]


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """Something that is run as ssh: it notes its number and words by the host's name, and gives back what it gets."""
    path = tmp_path / "an ssh"
    path.write_text(
        f"#!/bin/sh\necho $$ \"$@\" >'{tmp_path}'/$$.new && mv '{tmp_path}'/$$.new '{tmp_path}'/\"$9\"\nexec cat\n"
    )
    path.chmod(0o700)
    return path


@pytest.fixture
def ends(tmp_path: Path, ssh: Path) -> Iterator[tuple[Process, Process]]:
    """Both connections, as libvirt opens them, once what goes in comes out."""
    uris = [f"qemu+ssh://root@{h}/system?command={ssh}&no_tty=1" for h in ("here", "there")]
    with fused(uris[0], uris[1], folder_name()) as found:
        assert found is not None
        started = []
        for uri, words in zip(found, ("1 2 3 4 5 6 7 8 here", "1 2 3 4 there"), strict=True):
            given = parse_qs(urlsplit(uri).query)
            assert given["no_tty"] == ["1"]
            argv = [given["command"][0], *words.split()]
            started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))
        for process in started:
            say(process)
        yield started[0], started[1]
        for process in started:
            process.kill()
            with process:
                pass
    assert not Path(given["command"][0]).parent.exists()


def say(process: Process) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"call")
    assert process.stdout.read(4) == b"call"


def number(folder: Path, host: str) -> int:
    return int((folder / host).read_text().split()[0])


def test_the_source_is_dead_when_the_target_is_seen_to_break(ends: tuple[Process, Process], tmp_path: Path) -> None:
    source, target = ends
    assert target.stdout
    os.kill(number(tmp_path, "there"), signal.SIGKILL)
    assert target.stdout.read(1) == b""
    assert source.poll() == -signal.SIGKILL


def test_a_connection_that_is_closed_blows_no_fuse(ends: tuple[Process, Process], tmp_path: Path) -> None:
    source, target = ends
    assert target.stdin
    target.stdin.close()
    target.wait(timeout=30)
    say(source)
    os.kill(number(tmp_path, "here"), signal.SIGKILL)  # nor does the loss of the source touch anything
    assert source.wait(timeout=30) == 255


def test_ssh_goes_with_its_pump(ends: tuple[Process, Process], tmp_path: Path) -> None:
    source, _ = ends
    below = Path(f"/proc/{number(tmp_path, 'here')}")
    source.kill()
    end = time.monotonic() + 30
    while below.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not below.exists()


def test_silence_of_the_target_is_noticed_by_ssh(ends: tuple[Process, Process], tmp_path: Path) -> None:
    assert "ServerAliveInterval=5" in (tmp_path / "there").read_text()
    assert "ServerAlive" not in (tmp_path / "here").read_text()
    assert len(ends) == 2


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu+tcp://h/system", "qemu+tls://h/system", "test:///default"])
def test_none_without_ssh(uri: str) -> None:
    with fused("qemu+ssh://here/system", uri, folder_name()) as found:
        assert found is None


def test_what_is_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    name = Path(folder_name()).name
    for each in (tmp_path / name, tmp_path / "other"):
        each.mkdir()
        swept(str(each))
    assert [p.name for p in tmp_path.iterdir()] == ["other"]
