"""Getting into a guest: who, where and with which key; the command line of ssh; copying, with this machine as guest."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from vmkit.errors import EffectError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.progress import Event, Finished
from vmkit.system.openssh import Server
from vmkit.system.process import Completed
from vmkit.vm.access import archive, copy, login
from vmkit.vm.access.copy import Place
from vmkit.vm.access.ways import Advance
from vmkit.vm.addresses import Address, Source
from vmkit.vm.describe import Nic
from vmkit.vm.metadata import Access

OWN = "ssh-ed25519 AAAAown vmkit"
MINE = "ssh-rsa AAAAmine me@here"


def test_only_keys_that_the_guest_takes_are_tried() -> None:
    here = {Path("/h/own"): OWN, Path("/h/rsa"): "ssh-rsa AAAAmine another remark", Path("/h/x"): "ssh-rsa AAAAx"}
    assert login.keys_for(Access("debian", (OWN, MINE)), here) == (Path("/h/own"), Path("/h/rsa"))
    assert login.keys_for(Access("debian", ("ssh-rsa AAAAelse",)), here) == ()
    assert login.keys_for(None, here) == ()


def test_the_way_leads_through_the_host() -> None:
    assert login.proxy("qemu:///system") == ()
    words = login.proxy("qemu+ssh://root@192.0.2.1:2222/system?keyfile=/k&command=/opt/ssh")
    assert words[0] == "/opt/ssh"
    assert words[-4:] == ("-W", "%h:%p", "--", "192.0.2.1")
    assert {"-i", "/k", "-p", "2222", "-l", "root"} <= set(words)
    with pytest.raises(UnsupportedError):
        login.proxy("qemu+tcp://192.0.2.1/system")


def nic(network: str, *forwards: str) -> Nic:
    return Nic("52:54:00:00:00:01", "virtio", network, None, forwards=forwards)


def test_where_the_guest_is_reached() -> None:
    lease = Address("192.0.2.7", "52:54:00:00:00:01", "network:lab", (Source.LEASE,))
    inside = Address("10.0.2.15", "52:54:00:00:00:01", "user", (Source.AGENT,))
    assert login.entrance(lease, [nic("network:lab")], 22) == ("192.0.2.7", 22)
    assert login.entrance(inside, [nic("user")], 22) is None
    assert login.entrance(inside, [nic("user", "tcp:127.0.0.1:8080:80", "tcp:0.0.0.0:2222:22")], 22) == (
        "127.0.0.1",
        2222,
    )
    assert login.entrance(None, [nic("user", "udp:127.0.0.1:2222:22")], 22) is None


def test_the_agents_channel() -> None:
    xml = (
        "<domain><devices><channel><target type='virtio' name='org.qemu.guest_agent.0' state='{}'/>"
        "</channel></devices></domain>"
    )
    assert login.agent_connected(xml.format("connected"))
    assert not login.agent_connected(xml.format("disconnected"))
    assert not login.agent_connected("<domain/>")


def server(**more: object) -> Server:
    known = {"address": "192.0.2.7", "port": 22, "user": "debian", "alias": "vmkit-1", "known": True}
    return Server(**{**known, "known_hosts": Path("/h o%me/known"), **more})  # type: ignore[arg-type]


def test_command_line_of_ssh() -> None:
    argv = server(keys=(Path("/h/own"),)).argv(["echo", "a b", "$HOME"])
    assert argv[-3:] == ["--", "192.0.2.7", "echo 'a b' '$HOME'"]
    assert "StrictHostKeyChecking=yes" in argv
    assert "IdentitiesOnly=yes" in argv
    assert 'UserKnownHostsFile="/h o%%me/known"' in argv
    assert argv[argv.index("-i") + 1] == "/h/own"
    plain = server(known=False, user=None).argv()
    assert plain[-2:] == ["--", "192.0.2.7"]
    assert "StrictHostKeyChecking=accept-new" in plain
    assert "-l" not in plain
    assert "IdentitiesOnly=yes" not in plain


def test_ssh_itself_understands_it(tmp_path: Path) -> None:
    proxy = ("/o%pt/s sh", "-W", "%h:%p", "--", "192.0.2.1")
    argv = server(known_hosts=tmp_path / "a b", proxy=proxy, keys=(Path("/h/own"),)).argv(quiet=True)
    argv.insert(1, "-G")  # print the configuration, and do nothing
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    told = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert told["hostkeyalias"] == "vmkit-1"
    assert tmp_path.joinpath("a b").as_posix() in told["userknownhostsfile"]
    assert told["batchmode"] == "yes"
    assert shlex.split(told["proxycommand"])[0] == "/o%%pt/s sh"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web1:/etc/motd", Place("web1", "/etc/motd")),
        ("web1:", Place("web1", ".")),
        ("./a:b", Place(None, "./a:b")),
        ("/tmp/a:b", Place(None, "/tmp/a:b")),
        ("file", Place(None, "file")),
        ("a.b-c:x y", Place("a.b-c", "x y")),
    ],
)
def test_places(text: str, expected: Place) -> None:
    assert copy.place(text) == expected


def test_one_side_is_a_guest() -> None:
    assert copy.ends(["a", "b"], "web1:/tmp") == ("web1", ("a", "b"), "/tmp", True)
    assert copy.ends(["web1:/a", "web1:/b"], ".") == ("web1", ("/a", "/b"), ".", False)
    for sources, target, message in (
        (["a"], "b", "neither side"),
        (["v:/a"], "w:/b", "both sides"),
        (["v:/a", "w:/b"], ".", "not all in the same place"),
        ([""], "v:/a", "no path"),
    ):
        with pytest.raises(SpecError, match=message):
            copy.ends(sources, target)


class Here:
    """This machine as a guest: what the scripts of a copy do is done for real."""

    name = "ssh"
    vm = "web1"

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes | None = None) -> Completed:
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout, check=False)
        return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())

    def put(self, source: BinaryIO, path: str, advance: Advance) -> None:
        Path(path).write_bytes(source.read())
        advance(Path(path).stat().st_size)

    def get(self, path: str, sink: BinaryIO, advance: Advance) -> None:
        advance(sink.write(Path(path).read_bytes()))

    def feed(self, argv: Sequence[str], source: BinaryIO, advance: Advance) -> Completed:
        return self.run(argv, stdin=source.read())

    def drain(self, argv: Sequence[str], sink: BinaryIO, advance: Advance) -> Completed:
        done = subprocess.run(argv, stdout=sink, check=False)
        return Completed(done.returncode, "", "")


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of this side with files, and an empty one that stands for the guest."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "site" / "sub").mkdir(parents=True)
    there.mkdir()
    (here / "one file").write_bytes(bytes(range(256)) * 300)
    (here / "one file").chmod(0o750)
    (here / "site" / "index").write_text("hello")
    (here / "site" / "sub" / "link").symlink_to("../index")
    (here / "site" / "empty").touch(0o600)
    return here, there


def test_files_and_folders_go_in(sides: tuple[Path, Path]) -> None:
    here, there = sides
    events: list[Event] = []
    done = copy.to_guest(Here(), [here / "one file", here / "site"], str(there), events.append)
    assert [(d.target, d.files) for d in done] == [(str(there / "one file"), 1), (str(there / "site"), 2)]
    assert (there / "one file").read_bytes() == (here / "one file").read_bytes()
    assert (there / "one file").stat().st_mode & 0o777 == 0o750
    assert (there / "site" / "sub" / "link").readlink() == Path("../index")
    assert [type(e) for e in events][-1] is Finished
    (named,) = copy.to_guest(Here(), [here / "site"], str(there / "renamed"))
    assert (there / "renamed" / "index").read_text() == "hello"
    assert named.target == str(there / "renamed")
    assert sorted(p.name for p in there.iterdir()) == ["one file", "renamed", "site"]  # and nothing half


def test_files_and_folders_come_out(sides: tuple[Path, Path]) -> None:
    there, here = sides
    copy.from_guest(Here(), [str(there / "one file"), str(there / "site")], here)
    assert (here / "one file").read_bytes() == (there / "one file").read_bytes()
    assert (here / "one file").stat().st_mode & 0o777 == 0o750
    assert (here / "site" / "sub" / "link").readlink() == Path("../index")
    copy.from_guest(Here(), [str(there / "one file")], here / "other name")
    copy.from_guest(Here(), [str(there / "site")], here / "other site")
    copy.from_guest(Here(), [str(there / "site")], here)  # again, over what is there
    assert (here / "other site" / "index").read_text() == "hello"
    assert sorted(p.name for p in here.iterdir()) == ["one file", "other name", "other site", "site"]


def test_a_link_is_written_through(sides: tuple[Path, Path]) -> None:
    here, there = sides
    (there / "real").write_text("old")
    (there / "link").symlink_to("real")
    copy.to_guest(Here(), [here / "site" / "index"], str(there / "link"))
    assert (there / "link").is_symlink()
    assert (there / "real").read_text() == "hello"


def test_what_cannot_be_copied(sides: tuple[Path, Path]) -> None:
    here, there = sides
    file, none = here / "one file", there / "none" / "x"
    with pytest.raises(NotFoundError, match="on this machine"):
        copy.to_guest(Here(), [here / "nothing"], str(there))
    with pytest.raises(NotFoundError, match="no folder for"):
        copy.to_guest(Here(), [file], str(none))
    with pytest.raises(NotFoundError, match="no folder"):
        copy.to_guest(Here(), [file], f"{there / 'none'}/")
    (there / "f").touch()
    with pytest.raises(RefusedError, match="is a file"):
        copy.to_guest(Here(), [here / "site"], str(there / "f"))
    with pytest.raises(NotFoundError, match="in the guest"):
        copy.from_guest(Here(), [str(none)], here)
    with pytest.raises(NotFoundError, match="no folder for"):
        copy.from_guest(Here(), [str(there / "f")], here / "none" / "x")
    with pytest.raises(RefusedError, match="neither"):
        copy.from_guest(Here(), ["/dev/null"], here)


def test_a_file_that_arrives_cut_short_is_not_put_in_place(sides: tuple[Path, Path]) -> None:
    here, there = sides

    class Short(Here):
        def put(self, source: BinaryIO, path: str, advance: Advance) -> None:
            Path(path).write_bytes(source.read(100))

    with pytest.raises(EffectError, match="did not arrive whole"):
        copy.to_guest(Short(), [here / "one file"], str(there))
    assert list(there.iterdir()) == []


def test_the_agent_takes_absolute_paths() -> None:
    class Agent(Here):
        name = "agent"

    with pytest.raises(SpecError, match="relative"):
        copy.look(Agent(), "file")
    assert copy.look(Agent(), "/").kind == "folder"


def tar_of(*members: tuple[str, bytes, str]) -> BinaryIO:
    """An archive of (name, type, link or content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.mode = 0o6755
            if kind == tarfile.REGTYPE:
                member.size = len(text)
                made.addfile(member, io.BytesIO(text.encode()))
            else:
                member.linkname = text
                made.addfile(member)
    out.seek(0)
    return out


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", tarfile.REGTYPE, "x")],
        [("/evil", tarfile.REGTYPE, "x")],
        [("a/../../evil", tarfile.REGTYPE, "x")],
        [("out", tarfile.SYMTYPE, ".."), ("out/evil", tarfile.REGTYPE, "x")],
        [("a", tarfile.DIRTYPE, ""), ("a/out", tarfile.SYMTYPE, "/"), ("a/out/evil", tarfile.REGTYPE, "x")],
        [("l", tarfile.LNKTYPE, "../secret")],
    ],
)
def test_a_guest_cannot_write_elsewhere(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    (tmp_path / "secret").write_text("s")
    with pytest.raises(EffectError):
        archive.unpack(tar_of(*members), tmp_path / "target")
    assert not list(tmp_path.rglob("evil"))
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_what_a_guest_may_not_hand_over(tmp_path: Path) -> None:
    files, left_out = archive.unpack(
        tar_of(("f", tarfile.REGTYPE, "x"), ("dev", tarfile.CHRTYPE, ""), ("pipe", tarfile.FIFOTYPE, "")),
        tmp_path / "t",
    )
    assert (files, left_out) == (1, ("dev", "pipe"))
    assert (tmp_path / "t" / "f").stat().st_mode & 0o7777 == 0o755  # no set-uid
    with pytest.raises(EffectError, match="damaged"):
        archive.unpack(io.BytesIO(b"no archive" * 100), tmp_path / "t")


def test_a_link_that_was_there_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "f").symlink_to("../secret")
    archive.unpack(tar_of(("f", tarfile.REGTYPE, "x")), tmp_path / "t")
    assert (tmp_path / "secret").read_text() == "s"
    assert (tmp_path / "t" / "f").read_text() == "x"


def test_packing_gives_everything_to_root(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("x")
    if os.geteuid() == 0:
        os.chown(tmp_path / "d" / "f", 1234, 1234)
    out = io.BytesIO()
    assert archive.pack(tmp_path / "d", "name", out) == 1
    out.seek(0)
    with tarfile.open(fileobj=out) as made:
        assert [(m.name, m.uid, m.gid, m.uname) for m in made] == [("name", 0, 0, ""), ("name/f", 0, 0, "")]


def test_host_keys_are_kept_for_each_vm(home: Path) -> None:
    path = login.known_hosts_path("u-1")
    assert home in path.parents
    path.parent.mkdir(parents=True)
    path.write_text("x")
    login.forget("u-1")
    login.forget("u-1")
    assert not path.exists()


def test_a_failed_transfer_names_the_file_that_was_asked_for(sides: tuple[Path, Path]) -> None:
    here, there = sides

    class Full(Here):
        def put(self, source: BinaryIO, path: str, advance: Advance) -> None:
            raise EffectError(f"cannot write {path}: no space left on device")

    with pytest.raises(EffectError) as caught:
        copy.to_guest(Full(), [here / "one file"], str(there))
    assert caught.value.message == f"cannot write {there}/one file: no space left on device"
