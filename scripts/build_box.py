"""Make the Vagrant box of a KVM host, and add it to Vagrant."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vmkit import Client
from vmkit.cli.render import error_lines, progress
from vmkit.errors import EffectError, NotFoundError, VmkitError
from vmkit.lab import box, cache
from vmkit.lab.kvm.command import CMDLINE
from vmkit.lab.nested.image import HostImage
from vmkit.progress import Finished, Note, Reporter, Started
from vmkit.system.files import home, locked
from vmkit.system.process import Completed, find_program, run

BOOT = Path("/var/lib/libvirt/boot")
"""Where libvirt's own tools put kernels: QEMU's user may pass through it, as it may not through a home."""
MICRO = "micro"


class Vagrant:
    """Vagrant, as the user who called sudo if there is one; root else."""

    def __init__(self) -> None:
        self._account = pwd.getpwuid(int(os.environ.get("SUDO_UID") or os.geteuid()))
        given = os.environ.get("VAGRANT_HOME")
        self.home = Path(given) if given else Path(self._account.pw_dir) / ".vagrant.d"

    def run(self, *words: str, timeout: float = 120.0) -> Completed:
        argv = [str(find_program("vagrant", package="vagrant vagrant-libvirt")), *words]
        if self._account.pw_uid != os.geteuid():
            argv = [str(find_program("runuser", package="util-linux")), "-u", self._account.pw_name, "--", *argv]
        # Away from this repository's Vagrantfile, which wants the box that is being made.
        environment = {"HOME": self._account.pw_dir, "VAGRANT_HOME": str(self.home), "VAGRANT_CWD": "/"}
        return run(argv, env=environment, cwd=Path("/"), timeout=timeout)

    def public_keys(self) -> tuple[str, ...]:
        """Of the key pairs that every Vagrant has, for the first log-in."""
        self.run("box", "list")  # which unpacks them
        private = [self.home / "insecure_private_key", *sorted(self.home.glob("insecure_private_keys/*"))]
        keys = {run(["ssh-keygen", "-y", "-f", path]).stdout.strip() for path in private if path.is_file()}
        if not keys:
            raise EffectError(f"Vagrant has no key in {self.home}", hint="vagrant box list, then run this again")
        return tuple(sorted(keys))

    @property
    def boxes(self) -> Path:
        return self.home / "boxes"


@contextlib.contextmanager
def telling() -> Iterator[Reporter]:
    """A moving display on a terminal; else a line for each step that has ended."""
    if sys.stderr.isatty():
        with progress() as reporter:
            yield reporter
        return

    def plain(event: object) -> None:
        match event:
            case Finished(step, seconds, text):
                print(f"  {step:<14} {text}".rstrip() + f"  {seconds:.1f} s", file=sys.stderr, flush=True)
            case Note(text, warning):
                print(f"{'warning: ' if warning else ''}{text}", file=sys.stderr, flush=True)

    yield plain


def source(image: HostImage) -> box.Source:
    # Debian's packages change under the same recipe: the time tells one build from the next.
    digest = f"{image.key} {image.disk.stat().st_mtime_ns}"
    return box.Source(image.disk, image.kernel, image.initrd, f"{image.cmdline} {CMDLINE}", digest)


def host_image(client: Client, tell: Reporter, *, force: bool) -> HostImage:
    image = client.labs.image("kvm", reporter=tell)
    if not force:
        return image
    for entry in client.labs.cached():
        if entry.name == image.name:
            if entry.used_by:
                tell(Note(f"the image stays as it is: the lab {', '.join(entry.used_by)} stands on it", warning=True))
                return image
            cache.remove(entry)
    return client.labs.image("kvm", reporter=tell)


def micro(client: Client, tell: Reporter) -> None:
    """The guest that `vmkit doctor` proves KVM with; the Vagrantfile brings it into the machine."""
    try:
        client.images.get(MICRO)
    except NotFoundError:
        client.images.build_micro(MICRO, reporter=tell)


def add(vagrant: Vagrant, made: box.Made, tell: Reporter) -> None:
    start = time.monotonic()
    tell(Started("add", "to Vagrant"))
    vagrant.run("box", "add", "--provider", "libvirt", str(made.catalogue), timeout=900)
    vagrant.run("box", "prune", "--name", box.NAME, "--keep-active-boxes", "--force")
    made.box.unlink()
    tell(Finished("add", time.monotonic() - start, str(vagrant.boxes)))


def drop_kernels(vagrant: Vagrant) -> None:
    """Kernels of boxes that are gone. (Boxes of other users are not seen: theirs come back with scripts/build-box.)"""
    wanted = {path for key in box.keys_in(vagrant.boxes) for path in box.kernel_files(BOOT, key)}
    for path in BOOT.glob("vmkit-*"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def build(tell: Reporter, *, force: bool) -> str:
    vagrant = Vagrant()
    with Client() as client:
        micro(client, tell)
        wanted = source(host_image(client, tell, force=force))
    keys = vagrant.public_keys()
    key = box.key_of(wanted, keys)
    kernel, initrd = box.place_kernel(wanted, BOOT, key)
    version = box.installed(vagrant.boxes, key)
    if version and not force:
        return f"{box.NAME} {version} is there already"
    version = time.strftime("%Y%m%d.") + str(int(time.strftime("1%H%M%S")))
    folder = home() / "vagrant" / "box"
    made = box.make(
        wanted, folder, version=version, key=key, public_keys=keys, kernel=kernel, initrd=initrd, reporter=tell
    )
    add(vagrant, made, tell)
    drop_kernels(vagrant)
    return f"{box.NAME} {version} is ready: vagrant up"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/build-box", description=__doc__)
    parser.add_argument("--force", action="store_true", help="make image and box anew")
    args = parser.parse_args()
    try:
        with locked(home() / "vagrant" / "build.lock", busy="another scripts/build-box runs"), telling() as tell:
            done = build(tell, force=args.force)
    except VmkitError as e:
        print("\n".join(error_lines(e)), file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("interrupted; run it again, and it goes on where it can", file=sys.stderr)
        return 130
    print(f"build-box: {done}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
