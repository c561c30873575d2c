"""The seed: what is merged into user-data, what the schema check sees, and the file system that holds it."""

from __future__ import annotations

import email
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import EffectError, SpecError
from vmkit.image import seed, seed_iso
from vmkit.image.seed import Card, Login
from vmkit.image.seed_check import check, is_public_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk me@here"
OTHER = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ you"
HASH = "$6$abcdefgh$0123456789"


def config(text: str) -> dict[str, Any]:
    assert text.startswith("#cloud-config\n")
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_nothing_given_lets_the_default_user_in() -> None:
    assert config(seed.user_data(None, Login(None, (KEY,)))) == {"ssh_authorized_keys": [KEY]}


def test_what_the_user_says_stays_and_keys_are_added() -> None:
    text = f"#cloud-config\npackages: [vim]\nssh_authorized_keys: ['{OTHER}']\n"
    found = config(seed.user_data(text, Login(None, (KEY, OTHER), HASH)))
    assert found["packages"] == ["vim"]
    assert found["ssh_authorized_keys"] == [OTHER, KEY]
    assert found["password"] == HASH
    assert found["chpasswd"] == {"expire": False}


def test_a_user_of_its_own_replaces_the_default_one() -> None:
    found = config(seed.user_data(None, Login("ops", (KEY,), HASH)))
    (user,) = found["users"]
    assert user["name"] == "ops"
    assert user["ssh_authorized_keys"] == [KEY]
    assert user["hashed_passwd"] == HASH
    assert user["lock_passwd"] is False
    assert "ssh_authorized_keys" not in found


@pytest.mark.parametrize(
    ("users", "asked", "expected"),
    [
        (None, None, None),
        (["default", {"name": "bob"}], None, None),
        ([{"name": "bob"}, {"name": "eve"}], None, "bob"),
        ([{"name": "bob"}], "eve", "eve"),
        (["default"], "bob", "bob"),
    ],
)
def test_who_logs_in(users: Any, asked: str | None, expected: str | None) -> None:
    data = {"users": users} if users is not None else {}
    assert seed.login_user(data, asked) == expected
    found = config(seed.user_data(data, Login(asked, (KEY,))))
    accounts = {u["name"]: u for u in found.get("users", []) if isinstance(u, dict)}
    if expected is None:
        assert found["ssh_authorized_keys"] == [KEY]
    else:
        assert [n for n, u in accounts.items() if u.get("ssh_authorized_keys") == [KEY]] == [expected]
    for word in users or []:
        assert word in found["users"] or (isinstance(word, dict) and word["name"] in accounts)


def test_root_may_be_the_user() -> None:
    found = config(seed.user_data(None, Login("root", (KEY,))))
    assert found == {"users": [{"name": "root", "ssh_authorized_keys": [KEY]}], "disable_root": False}


@pytest.mark.parametrize(
    ("data", "login"),
    [
        ({"password": "x"}, Login(None, (), HASH)),
        ({"chpasswd": {"list": "debian:x"}}, Login(None, (), HASH)),
        ({"users": [{"name": "bob", "passwd": HASH}]}, Login(None, (), HASH)),
    ],
)
def test_two_passwords_contradict(data: dict[str, Any], login: Login) -> None:
    with pytest.raises(SpecError, match="is set here too"):
        seed.user_data(data, login)


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\necho ä\n", "## template: jinja\n#cloud-config\n", "#include\nhttp://x/\n"]
)
def test_a_script_goes_beside_the_keys(text: str) -> None:
    parts = list(email.message_from_string(seed.user_data(text, Login(None, (KEY,)))).walk())
    assert [p.get_content_type() for p in parts] == ["multipart/mixed", "text/cloud-config", seed.kind_of(text)]
    ours, theirs = (p.get_payload(decode=True) for p in parts[1:])
    assert isinstance(ours, bytes)
    assert config(ours.decode()) == {"ssh_authorized_keys": [KEY]}
    assert theirs == text.encode()


def test_an_archive_is_taken_as_it_is() -> None:
    inner = seed.user_data("#!/bin/sh\ntrue\n", Login())
    parts = list(email.message_from_string(seed.user_data(inner, Login(None, (KEY,)))).walk())
    kinds = [p.get_content_type() for p in parts if p.get_content_maintype() != "multipart"]
    assert kinds == ["text/cloud-config", "text/cloud-config", "text/x-shellscript"]


@pytest.mark.parametrize("text", ["packages: [vim]\n", "", "echo hi", "web.yaml"])
def test_unknown_kinds_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="nothing that cloud-init knows") as caught:
        seed.user_data(text, Login())
    assert "#cloud-config" in (caught.value.hint or "")


def test_yaml_errors_name_the_line() -> None:
    with pytest.raises(SpecError, match="line 4, column 1"):
        seed.user_data("#cloud-config\npackages:\n  - [\n", Login())
    with pytest.raises(SpecError, match="mapping"):
        seed.user_data("#cloud-config\n- a\n", Login())


def test_meta_data() -> None:
    text = seed.meta_data("vmkit-1", "web1")
    assert seed.instance_of(text) == ("vmkit-1", "web1")
    assert [seed.hostname_of(n) for n in ("web_1", "a.b", "x-")] == ["web-1", "a.b", "x"]


def test_network_config() -> None:
    one = Card("52:54:00:00:00:01", "dhcp")
    assert seed.network_config([one]) is None
    assert seed.network_config([]) is None
    text = seed.network_config(
        [one, Card("52:54:00:00:00:02", "192.0.2.5/24", "192.0.2.1"), Card("52:54:00:00:00:03", "none")], ["192.0.2.53"]
    )
    assert text is not None
    found = yaml.safe_load(text)
    assert found == {
        "version": 2,
        "ethernets": {
            "nic0": {
                "match": {"macaddress": "52:54:00:00:00:01"},
                "dhcp4": True,
                "nameservers": {"addresses": ["192.0.2.53"]},
            },
            "nic1": {
                "match": {"macaddress": "52:54:00:00:00:02"},
                "addresses": ["192.0.2.5/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}],
            },
        },
    }


WRONG = [
    ({"run_cmd": ["x"]}, "run_cmd", "did you mean runcmd?"),
    ({"runcmd": "x"}, "runcmd", None),
    ({"runcmd": [{"echo a": "b"}]}, "runcmd[0]", "quotation marks"),
    ({"packages": [3]}, "packages[0]", None),
    ({"users": {"name": "x"}}, "users", None),
    ({"users": [{"name": "bob", "pasword": "x"}]}, "users[0].pasword", "did you mean passwd?"),
    ({"users": [{"nme": "bob", "zzzz": 1}]}, "users[0].nme", "did you mean name?"),
    ({"users": [{"zzzz": 1}]}, "users[0].zzzz", "known:"),
    ({"users": [{"gecos": "x"}]}, "users[0].name", None),
    ({"users": [7]}, "users[0]", None),
    ({"users": [{"name": "x", "ssh_authorized_keys": ["oops"]}]}, "users[0].ssh_authorized_keys[0]", "id_*.pub"),
    ({"write_files": [{"content": "x"}]}, "write_files[0].path", None),
    ({"write_files": [{"path": "/x", "permissions": 420}]}, "write_files[0].permissions", "'0644'"),
    ({"write_files": [{"path": "/x", "encoding": "zip"}]}, "write_files[0].encoding", "b64"),
    ({"write_files": ["/x"]}, "write_files[0]", None),
    ({"package_update": "yes"}, "package_update", None),
    ({"ssh_authorized_keys": "x"}, "ssh_authorized_keys", None),
    ({"hostname": 3}, "hostname", None),
]


@pytest.mark.parametrize(("data", "path", "hint"), WRONG)
def test_what_cloud_init_would_drop_is_refused(data: dict[str, Any], path: str, hint: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        check(data)
    assert caught.value.path == f"user_data.{path}"
    assert hint is None or hint in (caught.value.hint or "")


def test_what_is_right_passes() -> None:
    assert (
        check(
            {
                "users": ["default", {"name": "bob", "sudo": ["ALL=(ALL) ALL"], "ssh_authorized_keys": [KEY]}],
                "runcmd": ["echo a", ["touch", "/x", 1]],
                "packages": ["vim", ["nginx", "1.0"]],
                "write_files": [
                    {"path": "/etc/motd", "content": "hi", "permissions": "0644", "encoding": "text/plain"}
                ],
                "package_update": True,
                "growpart": {"mode": "auto"},
            }
        )
        == ()
    )
    (warning,) = check({"something_of_the_future": 1})
    assert "something_of_the_future" in warning


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (KEY, True),
        (f'command="x",no-pty {KEY}', True),
        ("ssh-ed25519", False),
        (f"{KEY}\n{KEY}", False),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", False),
        (3, False),
    ],
)
def test_public_keys(text: object, right: bool) -> None:
    assert is_public_key(text) is right


def test_the_file_system_holds_what_was_put_in() -> None:
    files = {"user-data": b"#cloud-config\n" * 3000, "meta-data": b"", "network-config": "ü".encode()}
    data = seed_iso.write(files)
    assert data[0x8000 + 40 : 0x8000 + 46] == b"cidata"  # ECMA-119, 8.4.7: volume identifier of the primary descriptor
    assert seed_iso.read(data) == files
    with pytest.raises(EffectError, match="cannot be read"):
        seed_iso.read(b"no file system")


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()), max_size=4))
def test_any_mapping_passes_or_is_refused(data: dict[str, Any]) -> None:
    try:
        check(data)
        text = seed.user_data(data, Login("bob", (KEY,)))
    except SpecError:
        return
    assert config(text)["users"][0]["name"] == "bob"
