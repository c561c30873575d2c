"""The pair lab as its users see it: hosts that answer, are apart from each other, and go without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.qemu.conftest import OWN
from vmkit.client import Client
from vmkit.errors import ConflictError, DeadlineError, EffectError, NotFoundError, UnreachableError
from vmkit.hypervisor.host import Host
from vmkit.lab.api import Lab, Labs
from vmkit.system.process import run
from vmkit.system.ssh import Connection, Endpoint


def vmkit(*words: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmkit", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def endpoint(lab: Lab, hostname: str, **changes: Path) -> Endpoint:
    ssh = lab.host(hostname).ssh
    return Endpoint(
        ssh.host, ssh.port, ssh.user, changes.get("key", ssh.key), changes.get("known_hosts", ssh.known_hosts)
    )


# -- what is there


def test_both_hosts_answer_and_are_apart(pair: Lab, client_h1: Client, client_h2: Client) -> None:
    assert pair.state == "up"
    first, second = client_h1.host, client_h2.host
    assert (first.hostname(), second.hostname()) == ("h1", "h2")
    uuids = {ET.fromstring(h.capabilities()).findtext("host/uuid") for h in (first, second)}
    assert len(uuids) == 2
    own = Path("/sys/class/dmi/id/product_uuid")
    assert not own.exists() or own.read_text().strip().lower() not in uuids
    assert not Path("/etc/libvirt/qemu/networks/lab.xml").exists(), "the hosts' network is defined on the machine"


def test_each_host_has_the_shared_pool_and_the_network(pair: Lab, client_h1: Client, client_h2: Client) -> None:
    folders = {c.host.pool("vmkit").folder for c in (client_h1, client_h2)}
    assert folders == {pair.folder / "pool"}
    for client in (client_h1, client_h2):
        assert client.host.network_names() == {"lab": True}
    (pair.folder / "pool/shared.raw").write_bytes(b"x" * 4096)
    assert client_h2.host.pool("vmkit").path("shared.raw") == str(pair.folder / "pool/shared.raw")
    assert client_h1.host.pool("vmkit").delete("shared.raw")


def test_a_host_reaches_the_other_with_the_same_uri_and_by_name(pair: Lab) -> None:
    labs, there = Labs(), pair.host("h2")
    done = labs.run(pair.host("h1").name, ["virsh", "-c", there.uri, "hostname"])
    assert (done.status, done.stdout.strip()) == (0, "h2")
    assert labs.run(f"{pair.name}/h1", ["ssh", "h2", "hostname"]).stdout == "h2\n"
    assert labs.run(f"{pair.name}/h1", ["virsh", "-c", "qemu+ssh://root@h2/system", "hostname"]).stdout.strip() == "h2"


def test_virsh_takes_the_uri(pair: Lab) -> None:
    assert run(["virsh", "-c", pair.host("h1").uri, "pool-list", "--name"]).stdout.split() == ["vmkit"]


def test_the_list_is_complete_as_json(pair: Lab) -> None:
    done = vmkit("lab", "list", "-o", "json")
    rows = {r["name"]: r for r in json.loads(done.stdout) if r["lab"] == pair.name}
    assert set(rows) == {f"{pair.name}/h1", f"{pair.name}/h2"}
    row = rows[f"{pair.name}/h2"]
    assert row["kind"] == "pair"
    assert row["uri"] == pair.host("h2").uri
    assert set(row["ssh"]) >= {"host", "port", "user", "key", "known_hosts"}
    assert row["address"].rpartition(".")[0] == row["static"][0].rpartition(".")[0] == row["gateway"].rpartition(".")[0]


def test_a_second_up_returns_the_same_hosts_at_once(pair: Lab) -> None:
    start = time.monotonic()
    again = Labs().up("pair", name=pair.name)
    assert time.monotonic() - start < 1
    assert again == pair


def test_the_users_ssh_files_are_not_touched(pair: Lab) -> None:
    folder = Path.home() / ".ssh"
    before = {p: p.read_bytes() for p in folder.glob("*") if p.is_file()} if folder.is_dir() else None
    assert run([pair.folder / "ssh", "h1", "cd ~/.ssh 2>&1; pwd"]).stdout
    after = {p: p.read_bytes() for p in folder.glob("*") if p.is_file()} if folder.is_dir() else None
    assert after == before


# -- exec


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exec_passes_the_exit_status_on(pair: Lab, status: int) -> None:
    assert vmkit("lab", "exec", f"{pair.name}/h1", "--", "sh", "-c", f"exit {status}").returncode == status


def test_exec_passes_words_and_streams_as_they_are(pair: Lab) -> None:
    words = ["a b", "$HOME", "'", '"', "*", "", "--", "-c", "ä\n"]
    done = vmkit(
        "lab", "exec", f"{pair.name}/h2", "--", "sh", "-c", 'cat; printf "[%s]" "$@" >&2', "x", *words, stdin="in"
    )
    assert done.stdout == "in"
    assert done.stderr == "".join(f"[{w}]" for w in words)


def test_exec_of_a_program_or_host_that_is_not_there(pair: Lab) -> None:
    assert vmkit("lab", "exec", f"{pair.name}/h1", "--", "no-such-program").returncode == 127
    done = vmkit("lab", "exec", f"{pair.name}/h9", "--", "true")
    assert done.returncode == 3
    assert "h9" in done.stderr


def test_exec_is_led_to_the_hosts_own_libvirt(pair: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
    assert vmkit("lab", "exec", f"{pair.name}/h2", "--", "virsh", "hostname").stdout.strip() == "h2"


def test_labs_are_not_touched_from_inside(pair: Lab) -> None:
    done = Labs().run(f"{pair.name}/h1", [sys.executable, "-m", "vmkit", "lab", "down", pair.name])
    assert done.status == 3
    assert "inside" in done.stderr
    assert Labs().get(pair.name).state == "up"


# -- ssh in process


def test_paramiko_runs_programs(pair: Lab) -> None:
    with Connection.open(endpoint(pair, "h1")) as ssh:
        assert ssh.run(["hostname"]).stdout == "h1\n"
        words = ["a b", "$HOME", "'", "*", ""]
        assert ssh.run(["printf", "[%s]", *words]).stdout == "".join(f"[{w}]" for w in words)
        data = bytes(range(256)) * 4096
        done = ssh.run(["sh", "-c", "wc -c; echo oops >&2; exit 3"], stdin=data, check=False)
        assert (done.status, done.stdout.strip(), done.stderr) == (3, str(len(data)), "oops\n")
        with pytest.raises(EffectError, match="status 3: oops"):
            ssh.run(["sh", "-c", "echo oops >&2; exit 3"])
        with pytest.raises(DeadlineError, match="sleep"):
            ssh.run(["sleep", "30"], timeout=0.5)


def test_paramiko_refuses_an_unknown_and_a_wrong_host_key(pair: Lab, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("")
    with pytest.raises(UnreachableError):
        Connection.open(endpoint(pair, "h1", known_hosts=known))
    other = pair.host("h2").address
    line = next(line for line in pair.host("h1").ssh.known_hosts.read_text().splitlines() if other in line)
    known.write_text(f"{pair.host('h1').address} {line.partition(' ')[2]}\n")
    with pytest.raises(UnreachableError, match="host key") as wrong:
        Connection.open(endpoint(pair, "h1", known_hosts=known))
    assert wrong.value.hint


def test_paramiko_says_when_the_key_is_not_let_in(pair: Lab, tmp_path: Path) -> None:
    key = tmp_path / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    with pytest.raises(UnreachableError, match="not let in"):
        Connection.open(endpoint(pair, "h1", key=key))


def test_paramiko_says_when_nobody_answers(pair: Lab) -> None:
    there = endpoint(pair, "h1")
    silent = Endpoint(there.host, 23, there.user, there.key, there.known_hosts)
    with pytest.raises(UnreachableError, match="port 23"):
        Connection.open(silent, timeout=5)


# -- several labs, and none


def test_a_second_lab_works_beside_the_first(pair: Lab) -> None:
    labs, name = Labs(), f"{OWN}-second"
    second = labs.up("pair", name=name, hosts=3)
    try:
        assert [h.hostname for h in second.hosts] == ["h1", "h2", "h3"]
        assert second.hosts[0].subnet != pair.hosts[0].subnet
        with Host.connect(second.host("h3").uri) as host:
            assert host.hostname() == "h3"
        with pytest.raises(ConflictError, match="several labs"):
            labs.find("h1")
        assert labs.find("h3").lab == name
    finally:
        labs.down(name)
    assert labs.get(pair.name) == pair


def test_an_unknown_lab(pair: Lab) -> None:
    done = vmkit("lab", "down", "no-such-lab")
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "error: no lab named 'no-such-lab'"
    assert pair.name in done.stderr.splitlines()[1]
    with pytest.raises(NotFoundError):
        Labs().get("no-such-lab")
