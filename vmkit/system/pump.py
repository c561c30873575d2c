"""What libvirt runs in place of ssh(1) for a connection with a fuse: it runs ssh, and passes on what goes to and fro.

    python pump.py source|target FOLDER PROGRAM ARGUMENT...

The one to the source leaves its process number in FOLDER. The one to the target kills it, and waits until it is dead,
when its own connection has broken and before its own client can learn of it. It is run as a file, and so imports
nothing of vmkit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

NOTICE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4")
"""Nothing else notices a host that has fallen silent: ssh ends after 20 to 25 s of it."""
PATIENCE_S = 5.0


def blow(folder: str) -> None:
    """Kill the pump of the connection to the source, if there is one, and wait for its end."""
    try:
        pid = int(Path(folder, "source").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if folder.encode() not in words:
        return
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while _lives(pid) and time.monotonic() < end:
        time.sleep(0.002)


def _lives(pid: int) -> bool:
    """Whether a thread of it may still run: the first one alone can be dead (proc(5))."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
                return True
    return False


def main() -> None:
    """Pump until either side ends."""
    role, folder, program, *arguments = sys.argv[1:]
    if role == "source":
        Path(folder, "new").write_text(str(os.getpid()))
        Path(folder, "new").rename(Path(folder, "source"))
    leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    argv = [*leash, program, *(NOTICE if role == "target" else ()), *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as ssh:
        if ssh.stdin is None or ssh.stdout is None:
            raise SystemExit(1)
        inward, outward = ssh.stdin.fileno(), ssh.stdout.fileno()
        hung_up = threading.Event()

        def up() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(0, 65536):
                    _all(inward, data)
                hung_up.set()  # the client itself has ended
            with contextlib.suppress(OSError):
                os.close(inward)

        threading.Thread(target=up, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := os.read(outward, 65536):
                _all(1, data)
        if role == "target" and not hung_up.is_set():
            blow(folder)
        try:
            status = ssh.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            status = 0
        os._exit(status if status >= 0 else 255)


def _all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    main()
