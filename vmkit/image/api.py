"""Images, as the rest of vmkit uses them."""

from __future__ import annotations

from pathlib import Path

from vmkit.image import store
from vmkit.image.manifest import Image
from vmkit.progress import Note, Reporter, silent


class Images:
    """The images of this machine. No connection is needed; nothing is opened before a call."""

    def list(self, reporter: Reporter = silent) -> list[Image]:
        """Every image, by name. One whose manifest is damaged is left out, and noted."""
        from vmkit.errors import VmkitError

        found = []
        for name in store.names():
            try:
                found.append(store.read(name))
            except VmkitError as e:
                reporter(Note(e.message, warning=True))
        return found

    def get(self, name: str) -> Image:
        """The image of this name.

        Raises:
            NotFoundError: there is none; the hint says how to get it.
            SpecError: that cannot be a name.
            EffectError: its manifest is damaged.
        """
        return store.read(name)

    def delete(self, name: str) -> None:
        """Remove an image from this machine. VMs made from it keep working: their hosts hold a copy of their own.

        Raises:
            NotFoundError: there is none.
            ConflictError: another process works on it.
        """
        store.delete(name)

    def build_micro(
        self, name: str | None = None, *, kernel: str = "cloud", force: bool = False, reporter: Reporter = silent
    ) -> Image:
        """Build the micro guest from Debian packages (about 10 s, 30 MB of downloads, 75 MB with the generic kernel).

        Args:
            name: what to call it; 'micro' by default, or 'micro-generic' with the generic kernel.
            kernel: 'cloud' (virtio devices alone, boots quickest) or 'generic' (emulated and real devices too).
            force: replace the image of that name.
            reporter: told of each step.

        Raises:
            SpecError: there is no such kernel.
            ConflictError: the name is taken and `force` is not set, or it is being made by another process.
            UnsupportedError: apt or a compiler is missing.
            EffectError: a download or a step of the build failed; nothing is left.
        """
        from vmkit.errors import SpecError
        from vmkit.image import micro

        try:
            which = micro.Kernel(kernel)
        except ValueError:
            raise SpecError(f"{kernel!r} is not 'cloud' or 'generic'", path="kernel") from None
        return micro.build(name, kernel=which, force=force, reporter=reporter)

    def build_debian(
        self, release: str = "13", name: str | None = None, *, force: bool = False, reporter: Reporter = silent
    ) -> Image:
        """Build a Debian with cloud-init, guest agent, ssh and a serial console, by mmdebstrap; root only.

        Args:
            release: '13' or '12'.
            name: what to call it; 'debian-13' or 'debian-12' by default.
            force: replace the image of that name.
            reporter: told of each step.

        Raises:
            SpecError: there is no such release.
            RefusedError: not root; or no space.
            ConflictError: the name is taken and `force` is not set, or it is being made by another process.
            UnsupportedError: a program is missing.
            EffectError: a download or a step of the build failed; nothing is left.
        """
        from vmkit.image import debian

        return debian.build(release, name, force=force, reporter=reporter)

    def build_bench(self, name: str = "bench", *, force: bool = False, reporter: Reporter = silent) -> Image:
        """Build the guest for `vmkit bench host`: the micro guest with the programs that measure (120 MB of downloads).

        Raises:
            As `build_micro`.
        """
        from vmkit.image import bench

        return bench.build(name, force=force, reporter=reporter)

    def import_(
        self, source: str | Path, name: str, *, sha256: str | None = None, reporter: Reporter = silent
    ) -> Image:
        """Bring in a disk image, qcow2 or raw, from a file or over http(s).

        Args:
            source: path or URL.
            name: what it will be called here.
            sha256: digest that the source has to have, as its publisher says.
            reporter: told of the progress.

        Raises:
            ConflictError: the name is taken.
            NotFoundError: there is no such file, or the server says so.
            RefusedError: it is not the expected file, or not one that is safe to use; nothing is left.
            EffectError: the transfer or the conversion failed; nothing is left.
        """
        from vmkit.image import importer

        return importer.import_image(source, name, sha256=sha256, reporter=reporter)
