"""Images, as the rest of vmkit uses them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import TYPE_CHECKING

from vmkit.image import store
from vmkit.image.manifest import Image
from vmkit.progress import Note, Reporter, silent

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host
    from vmkit.image.catalogue import Known
    from vmkit.image.prune import Leftover
    from vmkit.image.usage import Use


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

    def delete(self, name: str) -> str:
        """Remove an image from this machine; returns its name, which an alias may have stood for.

        VMs made from it keep working: their hosts hold a copy of their own.

        Raises:
            NotFoundError: there is none.
            ConflictError: another process works on it.
        """
        return store.delete(name)

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
        self,
        source: str | Path,
        name: str | None = None,
        *,
        sha256: str | None = None,
        sums: str | None = None,
        signature: str | None = None,
        keyring: str | None = None,
        force: bool = False,
        reporter: Reporter = silent,
    ) -> Image:
        """Bring in a disk image (qcow2, raw, vdi, vhdx or vpc; also in gzip, xz or bzip2), or an exported image.

        A download that is cut off, by Ctrl-C or a killed process too, goes on where it was when it is asked for again.
        Where an image was made of a file with the same SHA-256, nothing is fetched.

        Args:
            source: path, URL, or name in the catalogue, which then gives the proof too.
            name: what it will be called here; made of the source's file name by default.
            sha256: digest that the source has to have, as its publisher says; 128 digits are a SHA-512.
            sums: path or URL of a file of checksums that names the source's file.
            signature: path or URL of the detached OpenPGP signature of `sums`.
            keyring: path or URL of the keys, one of which has to have signed `sums`.
            force: replace the image of that name.
            reporter: told of the progress.

        Raises:
            SpecError: what should prove it is not complete.
            ConflictError: the name is taken, or another process fetches the same URL.
            NotFoundError: there is no such file, or the server says so.
            RefusedError: it is not the expected file, or not one that is safe to use; nothing is left.
            EffectError: the transfer was cut off, and what came is kept; or the conversion failed, and nothing is left.
        """
        from vmkit.image import importer

        proof = importer.Proof(sha256, sums, signature, keyring)
        return importer.import_image(source, name, proof, force=force, reporter=reporter)

    def export(self, name: str, target: Path, *, force: bool = False, reporter: Reporter = silent) -> Path:
        """Write an image to a file, whose suffix says the format; returns its path.

        '.tar' has the whole image, and `import_` takes it back; .qcow2, .raw, .img, .vmdk, .vhdx have its disk alone.
        The file appears when it is complete.

        Raises:
            NotFoundError: there is no such image.
            SpecError: the suffix says no format.
            ConflictError: the file is there, and `force` is not set.
            RefusedError: no space, no folder, or the image has no disk.
            EffectError: it cannot be written; nothing is left.
        """
        from vmkit.image import export

        return export.export(self.get(name), target, force=force, reporter=reporter)

    def verify(self, name: str, reporter: Reporter = silent) -> Image:
        """Read all files of an image and compare them with the digests that they had when it was made.

        Raises:
            NotFoundError: there is no such image.
            EffectError: a file is missing or damaged; says which.
        """
        from vmkit.errors import EffectError
        from vmkit.progress import Finished, Started
        from vmkit.system.clock import stopwatch

        image = self.get(name)
        again = f"make it again, or delete it: vmkit image delete {image.name}"
        for field, file in image.by_field.items():
            seconds = stopwatch()
            reporter(Started(field, str(file.size)))
            if not file.path.exists():
                raise EffectError(f"{file.path} is missing", hint=again)
            if (got := store.describe(file.path)).sha256 != file.sha256:
                raise EffectError(f"{file.path} is damaged: its SHA-256 is {got.sha256}, not {file.sha256}", hint=again)
            reporter(Finished(field, seconds(), str(file.size)))
        return image

    def known(self) -> builtins.list[Known]:
        """The catalogue: images that vmkit knows how to get."""
        from vmkit.image.catalogue import catalogue

        return [*catalogue().values()]

    def uses(self, host: Host, name: str | None = None) -> builtins.list[Use]:
        """Which VMs of a host use which image.

        Args:
            host: whose VMs.
            name: of one image; None for all.

        Raises:
            NotFoundError: there is no such image.
        """
        from vmkit.image import usage

        images = [self.get(name)] if name else store.readable()
        return usage.uses(usage.survey(host), images)

    def leftovers(self, host: Host | None = None, *, unused: bool = False) -> builtins.list[Leftover]:
        """What nobody needs: on this machine, and with `host` in its pool too.

        Args:
            host: whose pool is looked at.
            unused: images count too that no VM of `host` uses.
        """
        from vmkit.image import prune

        found = prune.on_this_machine()
        if host:
            found += [*(prune.images(host) if unused else []), *prune.on_host(host)]
        return found

    def prune(
        self, host: Host | None = None, *, unused: bool = False, reporter: Reporter = silent
    ) -> builtins.list[Leftover]:
        """Remove what `leftovers` finds; returns what is gone.

        Raises:
            ConflictError: a host is given, and an operation of vmkit's is under way, which may need what is there.
        """
        from vmkit.image import prune

        gone = prune.remove(self.leftovers(host, unused=unused), host, reporter)
        # Blobs of images that went just now.
        return gone + prune.remove(prune.on_this_machine(), None, reporter)
