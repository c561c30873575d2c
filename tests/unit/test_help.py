"""Help: each topic, the reference of the spec, and the manual page are whole and name what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from vmkit.cli.help import shown, topics
from vmkit.cli.main import COMMANDS, cli
from vmkit.cli.manual import escaped, page
from vmkit.vm.spec import DiskSpec, NicSpec, VmSpec
from vmkit.vm.spec_help import reference

ROOT = Path(__file__).parents[2]


def printed(*argv: str) -> str:
    done = CliRunner().invoke(cli, ["help", *argv], prog_name="vmkit")
    assert done.exit_code == 0, done.output
    return done.stdout


def command_of(words: list[str]) -> click.Command | None:
    context = click.Context(cli)
    command: click.Command | None = cli
    for word in words:
        if not isinstance(command, click.Group):
            return command
        command = command.get_command(context, word)
    return command


def test_the_overview_names_every_topic() -> None:
    text = printed()
    assert {"spec", "output", "hosts", "waiting", "recovery"} <= {t.name for t in topics()}
    for topic in topics():
        assert f"  {topic.name} " in text
        assert topic.title in text


@pytest.mark.parametrize("topic", topics(), ids=lambda t: t.name)
def test_a_topic_fits_and_names_commands_that_exist(topic: object) -> None:
    text = printed(topic.name)  # type: ignore[attr-defined]
    assert text == shown(topic, 80) or text.count("\n") > 3  # type: ignore[arg-type]
    for line in shown(topic, 80).splitlines():  # type: ignore[arg-type]
        assert line.startswith("    ") or len(line) <= 80
    examples = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    for words in re.findall(r"(?<!/)\bvmkit(?: -c (?:\"[^\"]*\"|\S+))? ([a-z]+)(?: ([a-z]+))?", examples):
        command = command_of([words[0]])
        assert command is not None or words[0] == "import", words


def test_no_topic_hides_a_command() -> None:
    assert not {t.name for t in topics()} & set(COMMANDS)


def test_a_command_is_explained_as_by_its_own_help() -> None:
    runner = CliRunner()
    for words in (["list"], ["image", "import"], ["lab", "image", "build"]):
        own = runner.invoke(cli, [*words, "--help"], prog_name="vmkit").stdout
        assert " ".join(printed(*words).split()) == " ".join(own.split())


@pytest.mark.parametrize(("words", "message"), [(["lsit"], "list"), (["spce"], "spec"), (["image", "x"], "image x")])
def test_what_is_not_there_is_wrong_input(words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["help", *words], prog_name="vmkit")
    assert done.exit_code == 2
    assert message in done.stderr


def test_every_field_of_the_spec_is_explained() -> None:
    parts = {part.path: part for part in reference()}
    for path, struct in (("vms[]", VmSpec), ("disks[]", DiskSpec), ("nics[]", NicSpec)):
        assert [f.name for f in parts[path].fields] == [f.name for f in msgspec.structs.fields(struct)]
    # A small part explains all of its fields in one sentence; of one that has a list nothing may be missing.
    unexplained = [
        f"{p.path}.{f.name}"
        for p in parts.values()
        for f in p.fields
        if not f.meaning and any(o.meaning for o in p.fields)
    ]
    assert all(part.what for part in parts.values())
    assert unexplained == []
    assert "None" not in printed("spec")


def test_a_default_and_the_choices_are_told() -> None:
    fields = {f.name: f for p in reference() if p.path == "vms[]" for f in p.fields}
    assert fields["name"].default == "required"
    assert fields["vcpus"].default == "1"
    assert fields["accel"].kind == "auto|kvm|tcg"
    assert fields["memory"].kind == "size"


def test_the_environment_variables_are_all_named() -> None:
    text = printed("files")
    used = {
        name
        for file in (ROOT / "vmkit").rglob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)\"(VMKIT_[A-Z_]+|LIBVIRT_[A-Z_]+)\"", file.read_text())
    }
    assert "VMKIT_HOME" in used
    assert used <= set(re.findall(r"[A-Z]+_[A-Z_]+", text))


def test_all_that_can_be_waited_for_is_named() -> None:
    from vmkit.vm.readiness import Layer

    text = printed("waiting")
    for layer in Layer:
        assert re.search(rf"^    {layer.value}\b", text, re.MULTILINE), layer


def test_the_manual_page_has_every_command_and_groff_takes_it() -> None:
    text = page(click.Context(cli, info_name="vmkit"))
    for name in COMMANDS:
        assert re.search(rf"^\.SS vmkit {name}\b", text, re.MULTILINE), name
    for topic in topics():
        assert f".SH {topic.name.upper()}" in text
    if groff := shutil.which("groff"):
        done = subprocess.run(
            [groff, "-man", "-ww", "-Tutf8", "-z"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0
        assert [line for line in done.stderr.splitlines() if "break" not in line and "adjust" not in line] == []


@pytest.mark.parametrize(
    ("text", "roff"),
    [(".so /etc/passwd", r"\&.so /etc/passwd"), ("'x'", r"\(aqx\(aq"), ("a\\b", r"a\eb"), ("--x", r"\-\-x")],
)
def test_text_does_not_become_requests(text: str, roff: str) -> None:
    assert escaped(text) == roff


def test_the_overview_has_every_command_in_its_section() -> None:
    from vmkit.cli.sections import SECTIONS

    placed = [name for names in SECTIONS.values() for name in names]
    assert sorted(placed) == sorted(COMMANDS)
    assert len(placed) == len(set(placed))
    text = CliRunner().invoke(cli, ["--help"], prog_name="vmkit").stdout
    for title in SECTIONS:
        assert f"\n{title}:\n" in text
