"""Making a patch for the kernel: a small source becomes a livepatch module, by the kernel's own build system.

The source defines functions of the names and types of those that they replace. It may use what the headers declare and
what the kernel and its modules export.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError, NotFoundError, RefusedError, SpecError
from vmkit.hotfix.kernel.form import MODULE_LIMIT, NAME_LIMIT, check_c_name, check_release
from vmkit.hotfix.kernel.module import ModuleFile, read_module
from vmkit.hotfix.manifest import FILE_LIMIT, Livepatch, Patch
from vmkit.system.files import open_regular
from vmkit.system.longrun import contained
from vmkit.system.process import Completed, find_program, run
from vmkit.system.templates import template
from vmkit.values import quoted

_SECONDS: Final = 600.0
"""Longest build; a module of one function takes 5 s on a quiet machine, and a minute in an emulated one."""
_ERROR: Final = re.compile(r"error:|undefined|\*\*\*|No such file")


def make_kernel_patch(
    source: Path,
    *,
    module: str,
    functions: Sequence[str],
    patch_id: str,
    title: str | None = None,
    cve: str = "",
    release: str | None = None,
    root: Path = Path("/"),
) -> Patch:
    """Make a patch that has functions of a kernel module do what `source` does.

    Args:
        source: C code that defines them anew.
        module: its name, to be found in ROOT/lib/modules/RELEASE, or its file.
        functions: names of the functions.
        patch_id: name of the patch.
        title: one line that says what it is for.
        cve: the CVE number that it mends, or ''.
        release: of the kernel; of this machine's, or that which the file of the module is for, where it is None.
        root: where the headers and the compiler are: this machine, or a root file system, which takes root to run.

    Raises:
        SpecError: a name cannot be one.
        NotFoundError: the module, the headers or a function is not there.
        RefusedError, UnsupportedError: the function cannot be replaced.
        EffectError: the source does not compile; the details are what the compiler said.
    """
    if not functions:
        raise SpecError("say which functions the source replaces", path="--function")
    for function in functions:
        check_c_name(function, "--function")
    text = _read(source)
    found = _module(module, release, root)
    if release is not None and found.release != check_release(release, "--release"):
        raise RefusedError(f"{found.label} is for the kernel {found.release}, not {release}")
    edits = [e for f in dict.fromkeys(functions) for e in found.edits(found.function(f))]
    name = module_name(patch_id)
    data = _build(root, found.release, text, name, found.name, tuple(dict.fromkeys(functions)))
    built = ModuleFile(data, f"the livepatch module {name}")
    if built.name != name or built.release != found.release or built.info.get("livepatch") != "Y":
        raise EffectError(f"kbuild made a module {built.name} for {built.release}", hint="see the headers in use")
    part = Livepatch(found.release, found.name, name, data)
    shown = title or f"{', '.join(functions)} of {found.name} replaced"
    return Patch(patch_id, shown, cve, "kernel", (found.build_id,), tuple(edits), livepatch=part)


def module_name(patch_id: str) -> str:
    """What the livepatch module of a patch is called.

    Raises:
        SpecError: it would be too long.
    """
    name = "vmkit_" + re.sub(r"[^A-Za-z0-9]", "_", patch_id)
    if len(name) > NAME_LIMIT:
        raise SpecError(f"{quoted(patch_id)} is too long for a kernel module", path="--id", hint="take a shorter one")
    return name


def names_header(object_name: str, functions: Sequence[str]) -> str:
    """The file names.h. All names were checked to be names of C."""
    each = " ".join(f"each({check_c_name(f, '--function')})" for f in functions)
    return f'#define VMKIT_OBJECT "{check_c_name(object_name, "--module")}"\n#define VMKIT_FUNCTIONS(each) {each}\n'


def _read(source: Path) -> bytes:
    with open_regular(source, "source file", limit=FILE_LIMIT) as f:
        return f.read(FILE_LIMIT)


def _module(module: str, release: str | None, root: Path) -> ModuleFile:
    if "/" in module or ".ko" in module:
        return read_module(Path(module))
    check_c_name(module.replace("-", "_"), "--module")
    release = check_release(release or os.uname().release, "--release")
    folder = root / "lib/modules" / release
    wanted = module.replace("-", "_")
    for path in sorted((folder / "kernel").glob("**/*.ko*")):
        if path.name.partition(".ko")[0].replace("-", "_") == wanted:
            return read_module(path)
    raise NotFoundError(
        f"there is no module {quoted(module)} in {folder}",
        hint="give --release, or the file of the module: --module PATH/kvm.ko.xz",
    )


def _build(root: Path, release: str, source: bytes, name: str, object_name: str, functions: tuple[str, ...]) -> bytes:
    """The livepatch module. Nothing is left of the build."""
    headers = root / "lib/modules" / release / "build"
    here = root.resolve() == Path("/")
    if not (headers.is_dir() if here else headers.is_symlink() or headers.is_dir()):
        raise NotFoundError(
            f"the headers of the kernel {release} are not in {headers}",
            hint=f"apt-get install gcc make linux-headers-{release}; or give --root TREE, a system that has them",
        )
    if not here and os.geteuid() != 0:
        raise RefusedError(f"only root can run what is in {root}", hint="run it by sudo")
    with _work(root) as work:
        for part in ("Kbuild", "livepatch.c"):
            shutil.copyfile(template("hotfix-kernel") / part, work / part)
        (work / "replacement.c").write_bytes(source)
        (work / "names.h").write_text(names_header(object_name, functions))
        inside = work if here else Path("/") / work.relative_to(root)
        argv: list[str | Path] = ["make", "-C", f"/lib/modules/{release}/build", f"M={inside}", f"VMKIT_NAME={name}"]
        if here:
            find_program("make", package="make")
        else:
            argv = list(contained([find_program("chroot", package="coreutils"), root, *argv]))
        done = run([*argv, "modules"], timeout=_SECONDS, check=False)
        made = work / f"{name}.ko"
        if done.status != 0 or not made.is_file():
            raise _failed(done, inside)
        data = made.read_bytes()
    if len(data) > MODULE_LIMIT:
        raise RefusedError(f"the module has {len(data)} bytes, and {MODULE_LIMIT} is the limit")
    return data


def _failed(done: Completed, inside: Path) -> EffectError:
    """What the compiler and modpost said, of all that they say."""
    lines = [line.replace(f"{inside}/", "") for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if _ERROR.search(line)] or lines[-8:]
    first = telling[0] if telling else f"make ended with status {done.status}"
    hint = None
    if "undefined!" in first:
        hint = "the source may call only what the kernel and its modules export: write that function into the source"
    return EffectError(f"the module cannot be built: {first.strip()}", details=tuple(telling[1:9]), hint=hint)


@contextmanager
def _work(root: Path) -> Iterator[Path]:
    """A folder for the build; where another root is, inside of that."""
    try:
        folder = Path(
            tempfile.mkdtemp(prefix="vmkit-hotfix-", dir=None if root.resolve() == Path("/") else root / "tmp")
        )
    except OSError as e:
        raise RefusedError(f"cannot write there: {e}") from e
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
