"""Downloads: they go on where they were cut off, and only if it is still the same file."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.image_site import Site, serving
from vmkit.errors import CancelledError, EffectError, NotFoundError, RefusedError
from vmkit.image import download, prune
from vmkit.image.api import Images
from vmkit.progress import Advanced, Event, Note
from vmkit.recovery import recover_all
from vmkit.system import journal

pytestmark = pytest.mark.usefixtures("home")

BODY = os.urandom(1 << 20)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with serving(Site({"/disk.raw": BODY})) as site:
        yield site


def parts(home: Path) -> list[str]:
    return sorted(p.name for p in (home / "cache/downloads").iterdir())


def get(site: Site, *, verified: bool = False, events: list[Event] | None = None) -> bytes:
    with download.fetched(f"{site.url}/disk.raw", verified=verified, reporter=(events or []).append) as path:
        return path.read_bytes()


def test_a_broken_connection_is_taken_up_at_once(home: Path, site: Site) -> None:
    site.cuts = [300_000, 100_000]
    events: list[Event] = []
    assert get(site, events=events) == BODY
    assert site.asked == ["", "bytes=300000-", "bytes=400000-"]
    assert parts(home) == []


def test_progress_says_how_much_of_how_much(site: Site) -> None:
    events: list[Event] = []
    with download.fetched(f"{site.url}/disk.raw", verified=False, reporter=events.append):
        pass
    last = [e for e in events if isinstance(e, Advanced)][-1]
    assert (last.done, last.total) == (len(BODY), len(BODY))
    assert last.text.startswith("1M of 1M, ")


def test_what_came_is_kept_when_it_is_given_up(home: Path, site: Site) -> None:
    site.cuts = [500_000, *[0] * download.ATTEMPTS]
    with pytest.raises(EffectError) as caught:
        get(site)
    assert "are kept" in caught.value.message
    assert "again" in str(caught.value.hint)
    (part,) = (home / "cache/downloads").glob("*.part")
    assert part.read_bytes() == BODY[:500_000]
    events: list[Event] = []
    with download.fetched(f"{site.url}/disk.raw", verified=False, reporter=events.append) as path:
        assert path.read_bytes() == BODY
    assert site.asked[-1] == "bytes=500000-"
    assert any(isinstance(e, Note) and "going on" in e.text for e in events)
    assert parts(home) == []


def cut_off(site: Site, after: int) -> None:
    site.cuts = [after, *[0] * download.ATTEMPTS]
    with pytest.raises(EffectError):
        get(site, verified=True)
    site.cuts, site.asked = [], []


def test_a_file_that_has_changed_is_fetched_from_its_beginning(site: Site) -> None:
    cut_off(site, 500_000)
    site.etag, site.files["/disk.raw"] = '"two"', BODY[::-1]
    assert get(site) == BODY[::-1]
    assert site.asked == ["bytes=500000-"]  # If-Range: the server gave the whole


def test_without_a_validator_only_a_known_checksum_allows_to_go_on(site: Site) -> None:
    site.etag = ""
    cut_off(site, 500_000)
    assert get(site, verified=True) == BODY
    assert site.asked == ["bytes=500000-"]
    cut_off(site, 500_000)
    assert get(site) == BODY
    assert site.asked == [""]


def test_a_server_that_gives_no_parts(site: Site) -> None:
    cut_off(site, 500_000)
    site.ranges = False
    assert get(site) == BODY


def test_a_part_that_is_whole_already(home: Path, site: Site) -> None:
    cut_off(site, 500_000)
    (part,) = (home / "cache/downloads").glob("*.part")
    part.write_bytes(BODY)
    assert get(site) == BODY
    part.parent.mkdir(exist_ok=True)
    cut_off(site, 500_000)
    part.write_bytes(BODY + b"more")
    assert get(site) == BODY
    assert site.asked == [f"bytes={len(BODY) + 4}-", ""]


def test_a_failed_checksum_leaves_nothing_to_go_on_from(home: Path, site: Site) -> None:
    with pytest.raises(RefusedError, match="checksum"):
        Images().import_(f"{site.url}/disk.raw", "a", sha256="0" * 64)
    assert parts(home) == []
    with pytest.raises(NotFoundError):
        Images().import_(f"{site.url}/missing", "a")
    assert Images().list() == []


def test_ctrl_c_says_what_is_kept(home: Path, site: Site) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(CancelledError) as caught:
        Images().import_(f"{site.url}/disk.raw", "a", reporter=stop)
    assert "are kept" in caught.value.message
    assert Images().list() == []
    assert journal.records() == []
    assert Images().import_(f"{site.url}/disk.raw", "a").source_sha256 == DIGEST
    assert site.asked[1].startswith("bytes=")


IMPORT = "import sys; from vmkit.image.api import Images; Images().import_(sys.argv[1], 'killed')"


def test_killed_in_the_middle_the_next_import_goes_on(home: Path, site: Site) -> None:
    """kill -9 while it comes: no image is seen, the journal is settled, and the rest alone is fetched."""
    site.rate = 400_000
    child = subprocess.Popen([sys.executable, "-c", IMPORT, f"{site.url}/disk.raw"], cwd=Path.cwd())
    folder, deadline = home / "cache/downloads", time.monotonic() + 30
    while sum(p.stat().st_size for p in folder.glob("*.part")) < 100_000:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert Images().list() == []
    assert [x.kind for x in prune.on_this_machine()] == ["download"]
    (said,) = recover_all()
    assert "its half is removed" in said
    assert not list((home / "images").glob(".new-*"))
    have = next(folder.glob("*.part")).stat().st_size
    site.rate = 0
    made = Images().import_(f"{site.url}/disk.raw", "killed", sha256=DIGEST)
    assert site.asked[-1] == f"bytes={have}-"
    assert made.source_sha256 == DIGEST
    assert Images().verify("killed") == made
    assert parts(home) == []
    assert prune.on_this_machine() == []
