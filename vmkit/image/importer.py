"""Bringing in a disk image that someone else made."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vmkit.errors import NotFoundError, RefusedError, SpecError
from vmkit.image import archive, blobs, catalogue, signature, store
from vmkit.image.download import as_url, fetched, small
from vmkit.image.examine import examine, plain_path
from vmkit.image.manifest import Image, ImageKind
from vmkit.image.sums import LIMIT, Digest, base_name, digest_of, parse_sums
from vmkit.image.unpack import plain
from vmkit.progress import Advanced, Finished, Note, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.process import run
from vmkit.values import NAME_LIMIT, check_name, quoted

CHUNK: Final = 1 << 20
CONVERT_TIMEOUT: Final = 3600.0
_SUFFIXES = re.compile(r"\.(gz|xz|bz2|qcow2|qcow|img|raw|vdi|vhdx|vhd|tar|vmkit)$")


@dataclass(frozen=True, slots=True)
class Proof:
    """By what a source is known to be the right one; None where that is not given.

    Attributes:
        sha256: its SHA-256 (or SHA-512), as the publisher says.
        sums: path or URL of a file of checksums that names it.
        signature: path or URL of the detached signature of `sums`.
        keyring: path or URL of the OpenPGP keys, one of which has to have signed `sums`.
    """

    sha256: str | None = None
    sums: str | None = None
    signature: str | None = None
    keyring: str | None = None

    def check(self) -> None:
        """Raise SpecError where parts of it are missing."""
        if self.sha256 and self.sums:
            raise SpecError(
                "one of the two is enough",
                path="--sha256, --sums",
                hint="leave one out: --sha256 is the digest itself, --sums the file that lists it",
            )
        if self.signature and not self.sums:
            raise SpecError("needs the file that is signed", path="--signature", hint="give it too: --sums URL|FILE")
        if self.signature and not self.keyring:
            raise SpecError("needs the publisher's keys", path="--signature", hint="give them: --keyring FILE|URL")
        if self.keyring and not self.sums:
            raise SpecError("needs the file that is signed", path="--keyring", hint="give it too: --sums URL|FILE")


NO_PROOF: Final = Proof()


def import_image(
    source: str | Path,
    name: str | None = None,
    proof: Proof = NO_PROOF,
    *,
    force: bool = False,
    reporter: Reporter = silent,
) -> Image:
    """Import a disk; see `vmkit.image.api.Images.import_`."""
    text = str(source)
    known = catalogue.find(text, catalogue.catalogue()) if proof == NO_PROOF else None
    if known and not Path(text).exists():
        if not known.url:
            raise SpecError(f"'{known.name}' is built, not fetched", path="source", hint=known.command)
        text, name, proof = known.url, name or known.name, _proof_of(known, reporter)
    else:
        known = None
    url = as_url(text)
    name = check_name(name if name is not None else name_for(text))
    proof.check()
    if not force:
        store.refuse_taken(name)
    wanted = _wanted(text, proof, reporter)
    with store.making(name, force=force) as (folder, commit):
        if wanted and (same := _here(wanted)):
            reporter(Note(f"the image {same.name} was made of the same file; nothing is fetched"))
            return commit(_linked(same, folder, url or text))
        with contextlib.ExitStack() as stack:
            if url:
                original = stack.enter_context(fetched(url, verified=wanted is not None, reporter=reporter))
            else:
                original = _local(Path(text))
            digest = _compare(original, text, wanted, reporter)
            if archive.is_archive(original):
                return commit(replace(archive.unpack(original, folder, reporter), source_sha256=digest))
            return commit(_from_disk(original, folder, name, url or str(original.resolve()), digest, known, reporter))


def name_for(source: str) -> str:
    """A name for an image from its path or URL: the file's own, without what says its format. Pure."""
    name = base_name(source)
    while (shorter := _SUFFIXES.sub("", name)) != name:
        name = shorter
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:NAME_LIMIT].strip("-._")
    if not name:
        raise SpecError(f"no name can be made of {quoted(source)}", path="--name", hint="give one: --name NAME")
    return name


def _from_disk(
    original: Path,
    folder: Path,
    name: str,
    source: str,
    digest: str,
    known: catalogue.Known | None,
    reporter: Reporter,
) -> Image:
    content = plain(original, folder / "unpacked", reporter)
    kind = examine(content)
    disk = folder / "disk.qcow2"
    _convert(kind, content, disk, reporter)
    return Image(
        name=name,
        kind=ImageKind.IMPORTED,
        arch="x86_64",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        disk=store.describe(disk),
        cloud_init=True if known else None,
        user=known.user if known else None,
        source_sha256=digest,
    )


# -- what proves that it is the right file


def _proof_of(known: catalogue.Known, reporter: Reporter) -> Proof:
    """The proof that the catalogue names; without the signature where the publisher's keys are not on this machine."""
    signed = known.signature and known.keyring
    if signed and not Path(str(known.keyring)).exists():
        why = f"{known.keyring} is missing"
        hint = f": apt-get install {known.keyring_package}" if known.keyring_package else ""
        reporter(Note(f"the signature of the checksums is not verified, since {why}{hint}", warning=True))
        signed = None
    keys = (known.signature, known.keyring) if signed else (None, None)
    return Proof(sums=known.sums, signature=keys[0], keyring=keys[1])


def _wanted(source: str, proof: Proof, reporter: Reporter) -> Digest | None:
    """The digest that the source has to have.

    Raises:
        SpecError, RefusedError, NotFoundError, UnreachableError: it cannot be found out, or is not signed as it should.
    """
    if proof.sha256:
        return Digest.parse(proof.sha256, path="--sha256")
    if not proof.sums:
        return None
    data = small(proof.sums, LIMIT, "file of checksums")
    if proof.keyring:
        keys = small(proof.keyring, LIMIT, "keyring")
        if proof.signature:
            data = signature.verify(data, small(proof.signature, LIMIT, "signature"), keys, reporter)
        elif signature.is_clear_signed(data):
            data = signature.verify(data, None, keys, reporter)
        else:
            hint = "give its signature: --signature URL|FILE"
            raise SpecError("the file of checksums holds no signature", path="--sums", hint=hint)
    return digest_of(source, parse_sums(data.decode(errors="replace")))


def _compare(original: Path, source: str, wanted: Digest | None, reporter: Reporter) -> str:
    """The SHA-256 of a file.

    Raises:
        RefusedError: it has not the digest that is wanted.
    """
    seconds = stopwatch()
    reporter(Started("checksum"))
    digests = {a: hashlib.new(a) for a in {"sha256", wanted.algorithm if wanted else "sha256"}}
    total, done = original.stat().st_size, 0
    with original.open("rb") as f:
        while chunk := f.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
            done += len(chunk)
            reporter(Advanced("checksum", done, total))
    if wanted and (got := digests[wanted.algorithm].hexdigest()) != wanted.value:
        raise RefusedError(
            f"the checksum of {quoted(source, 200)} is wrong: expected {wanted.value}, got {got}",
            hint="fetch it again, and compare with what its publisher says",
        )
    reporter(Finished("checksum", seconds(), "as expected" if wanted else ""))
    return digests["sha256"].hexdigest()


def _here(wanted: Digest) -> Image | None:
    """An image that was made of the file with this digest."""
    if wanted.algorithm != "sha256":
        return None
    return next((i for i in store.readable() if i.source_sha256 == wanted.value), None)


def _linked(image: Image, folder: Path, source: str) -> Image:
    """The image once more, in another folder."""
    files = {}
    for field, file in image.by_field.items():
        target = folder / file.path.name
        try:
            blobs.link(file.path, target)
        except OSError:
            shutil.copyfile(file.path, target)
        files[field] = replace(file, path=target)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(image, created=created, source=source, **files)  # type: ignore[arg-type] # fields of files only


# -- what is in it


def _convert(kind: str, original: Path, disk: Path, reporter: Reporter) -> None:
    reporter(Started("convert", f"{kind} to qcow2"))
    seconds = stopwatch()
    run(["qemu-img", "convert", "-f", kind, "-O", "qcow2", plain_path(original), disk], timeout=CONVERT_TIMEOUT)
    reporter(Finished("convert", seconds(), f"{kind} to qcow2"))


# -- from a file


def _local(path: Path) -> Path:
    try:
        if path.is_file():
            with path.open("rb"):
                return path
        exists = path.exists()
    except OSError as e:
        raise RefusedError(
            f"cannot read {quoted(str(path), 200)}: {e.strerror}",
            hint=f"see who may read it: ls -l {quoted(str(path), 200)}",
        ) from e
    if exists:
        raise RefusedError(
            f"{quoted(str(path), 200)} is not a regular file",
            hint="give a disk image, or an archive of vmkit image export",
        )
    raise NotFoundError(f"no file {quoted(str(path), 200)}", hint="give a path, or a URL that begins with https://")
