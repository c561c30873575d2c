"""`vmkit image`: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_image_store import put
from vmkit.cli.main import main


def vmkit(*argv: str) -> int:
    """Exit code of the command."""
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    return int(caught.value.code or 0)


def test_import_list_show_delete(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.raw"
    source.write_bytes(bytes(1 << 20))
    assert vmkit("image", "import", str(source), "--name", "blank") == 0
    capsys.readouterr()
    assert vmkit("image", "list", "-o", "json") == 0
    (image,) = json.loads(capsys.readouterr().out)
    assert image["name"] == "blank"
    assert image["kind"] == "imported"
    assert image["disk"]["path"] == str(home / "images/blank/disk.qcow2")
    assert vmkit("image", "show", "blank") == 0
    assert str(source) in capsys.readouterr().out
    assert vmkit("image", "delete", "blank") == 0
    assert vmkit("image", "list", "-o", "name") == 0
    assert capsys.readouterr().out == "deleted blank\n"


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("show", "missing"), 3, "no image named 'missing'"),
        (("show", "micro"), 3, "vmkit image build micro"),
        (("show", "../x"), 2, "cannot be a name"),
        (("show", "x" * 300), 2, "too long"),
        (("show", "a\nb"), 2, "a\\nb"),
        (("delete", "missing"), 3, "no image named"),
        (("import", "/nonexistent", "--name", "a"), 3, "no file"),
        (("import", "ftp://h/x", "--name", "a"), 2, "ftp"),
        (("import", "/etc/passwd", "--name", "a", "--sha256", "zz"), 2, "SHA-256"),
        (("import", "/etc/passwd", "--name", "<b>"), 2, "cannot be a name"),
        (("build", "micro", "--name", "taken"), 3, "exists"),
    ],
)
def test_failures_are_one_clear_line_and_an_exit_code(
    home: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], code: int, text: str
) -> None:
    put("taken")
    assert vmkit("image", *argv) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


def test_help_needs_neither_libvirt_nor_rich() -> None:
    program = (
        "import sys; from vmkit.cli.main import main\n"
        "try: main(['image', 'import', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('libvirt', 'rich', 'paramiko', 'urllib.request') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
