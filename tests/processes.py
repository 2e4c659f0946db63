"""Processes for tests: forked children of this one, and fresh interpreters."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Final

PATIENCE: Final = 30.0
"""Seconds after which a test gives up waiting for a process that ought to be done."""


class ForkedChild:
    """A function that runs in a forked child of this process."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 and later warn that threads and fork do not mix: what these tests are about.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            self._run(function, writer)
        os.close(writer)
        self._reaped = False

    @staticmethod
    def _run(function: Callable[[], Any], writer: int) -> None:
        """Send what the function returns or raises, and leave without running anything of the parent's at exit."""
        try:
            try:
                answer = pickle.dumps((True, function()))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            while answer:
                answer = answer[os.write(writer, answer) :]
        finally:
            os._exit(0)

    def result(self) -> Any:
        """Return what the function returned; fail where it raised, died, or never came to an end."""
        chunks: list[bytes] = []
        deadline = time.monotonic() + PATIENCE
        while True:
            readable, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "the child did not come to an end"
            chunk = os.read(self._reader, 65_536)
            if not chunk:
                break
            chunks.append(chunk)
        assert chunks, "the child died"
        succeeded, answer = pickle.loads(b"".join(chunks))
        assert succeeded, f"in the child:\n{answer}"
        return answer

    def end(self) -> None:
        """Kill the child if it still runs, and collect it."""
        if not self._reaped:
            self._reaped = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._reader)


class PythonProcess:
    """A script in a fresh interpreter, which shares nothing with this process."""

    def __init__(self, script: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_line(self, line: str) -> None:
        """Return when the script has printed this line."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert readable, "the script says nothing"
        said = self._process.stdout.readline().rstrip("\n")
        assert said == line, f"the script said {said!r}; {self._read_errors() if not said else ''}"

    def go(self) -> None:
        """Send the script a line, for which it waits."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def finish(self) -> str:
        """Wait for the end of the script, and return what it printed since; fail where it failed."""
        output, errors = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, errors
        return output

    def end(self) -> None:
        """Kill the script if it still runs, and collect it."""
        with self._process:
            self._process.kill()

    def _read_errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read()


class Signal:
    """What one process waits for and another tells; made before the fork that separates them."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def tell(self, times: int = 1) -> None:
        """Let go one who waits, now or later, or as many as are said."""
        os.write(self._writer, b"." * times)

    def wait(self) -> None:
        """Return when it was told; fail where it never is."""
        readable, _, _ = select.select([self._reader], [], [], PATIENCE)
        assert readable, "waited in vain for another process"
        os.read(self._reader, 1)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


Fork = Callable[[Callable[[], Any]], ForkedChild]
"""The fixture ``fork``: starts a function in a child."""

NewSignal = Callable[[], Signal]
"""The fixture ``new_signal``: makes a signal, to be told and waited for across forks."""

StartPython = Callable[..., PythonProcess]
"""The fixture ``start_python``: starts a script, with arguments."""
