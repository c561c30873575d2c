"""The spec's field `cloud_init`: files that it names, what is refused, and what is remembered of secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmkit.errors import SpecError
from vmkit.image import keys
from vmkit.vm.cloud_spec import is_sealed
from vmkit.vm.spec import dump, load, parse, remembered_form

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk me@here"
HASH = "$6$abcdefgh$0123456789"


def of(**cloud_init: Any) -> Any:
    return parse({"name": "web1", "cloud_init": cloud_init})


def test_every_field_round_trips() -> None:
    spec = of(
        user="ops",
        ssh_keys=[KEY],
        password="generate",  # noqa: S106 - a word that asks for one
        hostname="www.example",
        user_data={"packages": ["vim"]},
        nameservers=["192.0.2.53"],
    )
    assert parse(dump(spec)) == spec
    assert of(network_config={"version": 2}).cloud_init.network_config == {"version": 2}


WRONG = [
    ({"user": "a b"}, "user", "no user name"),
    ({"hostname": "-x"}, "hostname", "no host name"),
    ({"ssh_keys": ["/no/such/key.pub"]}, "ssh_keys[0]", "cannot read"),
    ({"ssh_keys": ["a\nb"]}, "ssh_keys[0]", "not a public ssh key"),
    ({"password": "secret"}, "password", "as its hash"),
    ({"nameservers": ["dns"]}, "nameservers[0]", "not an address"),
    ({"network_config": {"ethernets": {}}}, "network_config", "version"),
    ({"network_config": {"version": 2}, "nameservers": ["192.0.2.1"]}, "nameservers", "has its own"),
    ({"user_data": {"run_cmd": []}}, "user_data.run_cmd", "no such key"),
    ({"user_data": "#cloud-config\nrun_cmd: []\n"}, "user_data.run_cmd", "no such key"),
    ({"user_data": "hello"}, "user_data", "nothing that cloud-init knows"),
    ({"user_data": "#cloud-config\n", "user_data_file": "x"}, "user_data_file", "as well"),
    ({"user_data_file": "/no/such/file"}, "user_data_file", "No such file"),
    ({"user_data_file": 3}, "user_data_file", "not the name of a file"),
    ({"user_data_file": "a\0b"}, "user_data_file", "not the name of a file"),
    ({"usr": "x"}, "usr", "unknown field"),
]


@pytest.mark.parametrize(("data", "path", "message"), WRONG)
def test_what_is_wrong_names_the_field(data: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        of(**data)
    assert caught.value.path == f"cloud_init.{path}"
    assert message in caught.value.message


def test_a_password_is_never_shown() -> None:
    with pytest.raises(SpecError) as caught:
        of(password="hunter2hunter2")  # noqa: S106
    assert "hunter2" not in f"{caught.value.message}{caught.value.hint}{caught.value.details}"


def test_files_are_looked_for_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("#cloud-config\npackages: [vim]\n")
    (tmp_path / "net.yaml").write_text("version: 2\nethernets: {}\n")
    (tmp_path / "keys.pub").write_text(f"# those of the team\n{KEY}\n\n{KEY}2\n")
    file = tmp_path / "vm.yaml"
    file.write_text(
        "name: web1\ncloud_init:\n  user_data_file: web.yaml\n  network_config_file: net.yaml\n  ssh_keys: [keys.pub]\n"
    )
    (spec,) = load(file)
    assert spec.cloud_init is not None
    assert spec.cloud_init.user_data == "#cloud-config\npackages: [vim]\n"
    assert spec.cloud_init.network_config == {"version": 2, "ethernets": {}}
    assert spec.cloud_init.ssh_keys == (KEY, f"{KEY}2")


def test_a_private_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n")
    with pytest.raises(SpecError, match=r"it is the private one: add \.pub") as caught:
        of(ssh_keys=[str(tmp_path / "id")])
    assert "b3Blb" not in str(caught.value)


def test_secrets_are_sealed_in_what_is_remembered() -> None:
    spec = of(user_data={"password": "hunter2", "chpasswd": {"expire": False}}, password=HASH, ssh_keys=[KEY])
    form = remembered_form(spec)
    text = json.dumps(form)
    assert "hunter2" not in text
    assert HASH not in text
    assert KEY in text
    assert is_sealed(form["cloud_init"]["user_data"])
    assert remembered_form(parse(form)) == form  # it can be read back, and means the same


def test_equal_content_has_one_form() -> None:
    as_mapping = remembered_form(of(user_data={"packages": ["vim"], "runcmd": ["true"]}))
    as_text = remembered_form(of(user_data="#cloud-config\n# a remark\nruncmd: ['true']\npackages: [vim]\n"))
    assert as_mapping == as_text
    assert as_mapping != remembered_form(of(user_data={"packages": ["emacs"], "runcmd": ["true"]}))
    assert remembered_form(of(password="generate"))["cloud_init"] == {"password": "generate"}  # noqa: S106


def test_dates_of_yaml_are_no_obstacle() -> None:
    spec = of(user_data="#cloud-config\nusers: [{name: bob, expiredate: 2030-01-01}]\n")
    assert is_sealed(remembered_form(spec)["cloud_init"]["user_data"])


def test_own_key_is_made_once_and_only_ours_to_read(home: Path) -> None:
    assert keys.own_public_key() is None
    public = keys.make_own_key()
    assert keys.make_own_key() == public == keys.own_public_key()
    assert public.startswith("ssh-ed25519 AAAA")
    assert keys.own_key_path() == home / "ssh" / "id_ed25519"
    assert keys.own_key_path().stat().st_mode & 0o777 == 0o600
    assert keys.own_key_path().parent.stat().st_mode & 0o777 == 0o700


def test_passwords() -> None:
    first, second = keys.new_password(), keys.new_password()
    assert first != second
    assert len(first) == 17
    made = keys.hashed(first)
    assert made.startswith("$6$")
    assert first not in made
    of(password=made)  # it is a hash that the spec takes


def test_keys_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.user_keys() == {}
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519.pub").write_text(f"{KEY}\n")
    assert keys.user_keys() == {tmp_path / ".ssh" / "id_ed25519": KEY}
