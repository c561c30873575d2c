"""What is done with patch files before they are applied: making, comparing, signing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from vmkit.errors import RefusedError
from vmkit.hotfix import manifest, signing
from vmkit.hotfix.locate import CONTEXT, make_patch
from vmkit.hotfix.signing import Verified
from vmkit.system.files import write_atomic

if TYPE_CHECKING:
    from vmkit.hotfix.build.make import DiffReport


@dataclass(frozen=True, slots=True)
class Made:
    """A new patch.

    Attributes:
        id: its name.
        text: the patch file.
        path: the file that it was written to (None: nowhere).
        notes: where each function goes, and what differs and is not in it; for a patch from two builds.
    """

    id: str
    text: str
    path: Path | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A new key: the secret part, which only its owner can read, and what machines are to trust.

    `trusted` is where this machine has the latter; None if it does not trust it.
    """

    name: str
    private: Path
    public: Path
    trusted: Path | None


class Authoring:
    """Making and signing patch files. Nothing here touches a host or a process."""

    def make(
        self,
        binary: Path,
        *,
        find: str,
        replace: str,
        id: str,  # noqa: A002 - the name that the field has everywhere
        title: str | None = None,
        cve: str = "",
        context: int = CONTEXT,
        path: Path | None = None,
    ) -> Made:
        """Make a patch that changes the one place of `binary` where the bytes `find` are; see locate.make_patch.

        `path` is where to write it. Raises SpecError, NotFoundError, RefusedError.
        """
        text = manifest.render(
            make_patch(binary, find=find, replace=replace, patch_id=id, title=title, cve=cve, context=context)
        )
        if path is not None:
            write_atomic(path, text)
        return Made(id, text, path)

    def make_from_builds(
        self,
        old: Path,
        new: Path,
        *,
        id: str,  # noqa: A002 - as above
        title: str | None = None,
        cve: str = "",
        functions: Sequence[str] = (),
        out_of_line: bool = False,
        path: Path | None = None,
    ) -> Made:
        """Make a patch that has processes of the build `old` do what `new` does; see build.make.make.

        `path` is where to write it. Raises SpecError, NotFoundError, RefusedError.
        """
        from vmkit.hotfix.build.make import make

        made = make(old, new, patch_id=id, title=title, cve=cve, functions=functions, out_of_line=out_of_line)
        text = manifest.render(made.patch)
        if path is not None:
            write_atomic(path, text)
        notes = [f"{name}: {where}" for name, where in made.how]
        notes += [f"differs too and is not in the patch: {name}" for name in made.left]
        return Made(id, text, path, tuple(notes))

    def make_for_kernel(
        self,
        source: Path,
        *,
        module: str,
        functions: Sequence[str],
        id: str,  # noqa: A002 - as above
        title: str | None = None,
        cve: str = "",
        release: str | None = None,
        root: Path = Path("/"),
        path: Path | None = None,
    ) -> Made:
        """Make a patch that has functions of a kernel module do what a C source does; see kernel.make.

        `path` is where to write it. Raises SpecError, NotFoundError, RefusedError, EffectError.
        """
        from vmkit.hotfix.kernel.make import make_kernel_patch

        patch = make_kernel_patch(
            source,
            module=module,
            functions=functions,
            patch_id=id,
            title=title,
            cve=cve,
            release=release,
            root=root,
        )
        text = manifest.render(patch)
        if path is not None:
            write_atomic(path, text)
        return Made(id, text, path)

    def diff(self, old: Path, new: Path, functions: Sequence[str] = ()) -> DiffReport:
        """Which functions of two builds differ in what they do; with `functions`, their assembly side by side.

        Raises: see build.make.diff.
        """
        from vmkit.hotfix.build.make import diff

        return diff(old, new, functions)

    def keygen(self, name: str, folder: Path, *, expires: date | None = None, trust: bool = False) -> KeyPair:
        """Make a key to sign patches with; see signing.keygen."""
        private, public = signing.keygen(name, folder, expires=expires, trust=trust)
        return KeyPair(name, private, public, signing.trusted_folders()[-1] / public.name if trust else None)

    def sign(self, path: Path, key: Path) -> Path:
        """Sign a patch file, in place; a signature that it has is replaced.

        Raises:
            SpecError: it is no sound patch file: such a thing is not signed.
            NotFoundError, RefusedError: the file or the key.
        """
        text = manifest.read(path)
        manifest.parse(text)
        signed = signing.sign(text, key)
        manifest.parse(signed)
        write_atomic(path, signed)
        return path

    def verify(self, path: Path) -> Verified:
        """The trusted key that signed a patch file.

        Raises:
            SpecError: it is no sound patch file.
            RefusedError: it is not signed, or not by a key that is trusted and valid today.
        """
        text = manifest.read(path)
        manifest.parse(text)
        return verified(text, str(path))


def verified(text: str, what: str) -> Verified:
    """As Authoring.verify, for the text of a patch file."""
    found = signing.verify(text, signing.trusted_keys(), today=signing.today())
    if found is None:
        raise RefusedError(
            f"{what} is not signed",
            hint="vmkit hotfix sign FILE --key KEYFILE; --allow-unsigned does without for this once",
        )
    return found
