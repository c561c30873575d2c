"""A second process of this program that outlives the first where it has to, and that the first talks to in lines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from vmkit.errors import EffectError


class Companion:
    """A Python module that runs as a process of its own, in a session of its own: no signal of the terminal reaches it.

    It is told JSON values, one a line, on its standard input, and answers likewise. If this process dies, however that
    is, its standard input ends; what it does then is its own decision. A context manager that closes both pipes and
    waits for its end.
    """

    def __init__(self, module: str) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        if process.stdin is None or process.stdout is None:
            raise EffectError(f"{module} could not be started")
        self._process, self._input, self._output = process, process.stdin, process.stdout

    def tell(self, value: Any) -> None:
        """Send one value. That it has ended is seen at the next answer."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._input.write(json.dumps(value) + "\n")
            self._input.flush()

    def answer(self) -> dict[str, Any] | None:
        """Wait for the next answer; None if it has ended. It has no time limit: call it from a thread of its own."""
        line = self._output.readline()
        try:
            value = json.loads(line) if line else None
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()
