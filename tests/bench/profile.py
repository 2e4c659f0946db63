"""What the time of one worker goes to, by py-spy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import run_load
from tests.bench.peers import Peer, Settings
from tests.bench.processes import read_cpu_seconds

__all__ = ["Profile", "ProfileError", "find_missing_py_spy", "profile_worker"]


class ProfileError(RuntimeError):
    """py-spy did not run, or may not look into the worker."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the samples of a worker were, each counted for the innermost function only.

    Attributes:
        samples: Their number.
        functions: Function and file -> samples.
        packages: The first part of the file's path -> samples.
    """

    samples: int
    functions: Counter[str]
    packages: Counter[str]

    def format(self, lines: int = 25) -> str:
        """Write the packages and the functions that took the most time themselves."""
        told = []
        for counts, most in ((self.packages, 10), (self.functions, lines)):
            told += [f"{100 * count / self.samples:5.1f} %  {name}" for name, count in counts.most_common(most)]
            told.append("")
        return "\n".join(told)


def _find_py_spy() -> str | None:
    # pip puts it beside the interpreter of a virtual environment, which need not be on the PATH.
    beside = Path(sys.executable).parent
    return shutil.which("py-spy", path=os.pathsep.join([str(beside), os.environ.get("PATH", os.defpath)]))


def find_missing_py_spy() -> str | None:
    """Say what to install where py-spy is missing, or None."""
    return None if _find_py_spy() else "py-spy is not installed (pip install py-spy)"


def profile_worker(peer: Peer, load_name: str, settings: Settings, folder: Path, file: Path) -> dict[str, Profile]:
    """Measure a peer again with py-spy on one of its workers; the rates of these runs are not reported.

    Args:
        peer: Whom to look into, something in Python.
        load_name: Under which of its loads; the first where it has none of this name.
        settings: How to measure; each recording takes ``seconds``, of the worker that is busiest then.
        folder: Where its data goes.
        file: Where to write all threads' stacks: a flame graph if it ends with ``.svg``, or else the raw stacks, one a
            line with the number of its samples.

    Returns:
        What was recorded -> where its samples were. Threads that hold the GIL are recorded by themselves too, because
        py-spy takes some that wait inside C for busy.

    Raises:
        ProfileError: py-spy failed.
        LoadError: The load did.
        ServerFailed: The peer did.
    """
    with tempfile.TemporaryDirectory(dir=folder) as data, peer.run(Path(data), settings) as service:
        load = next((load for load in service.loads if load.name == load_name), service.loads[0])
        # What is refused is refused as in the measurements only by a service that has seen the right key.
        for one in (service.loads[0], load):
            run_load(service.urls, one, seconds=settings.warmup_seconds, connections=settings.connections)
        running, every = Path(data, "running.txt"), Path(data, "every.txt")
        recordings = [(running, ["--format", "raw", "--gil"]), (every, ["--format", "raw"])]
        if file.suffix == ".svg":
            recordings.append((file.resolve(), ["--format", "flamegraph"]))
        # One load for all of them: another would spread its connections over the workers in another way.
        seconds = 1 + len(recordings) * (settings.seconds + 2)
        with ThreadPoolExecutor(1) as executor:
            sent = executor.submit(run_load, service.urls, load, seconds=seconds, connections=settings.connections)
            pid = _find_busiest(service.worker_pids())
            for target, options in recordings:
                _record(pid, target, settings.seconds, options)
            sent.result()
        if file.suffix != ".svg":
            shutil.copyfile(every, file)
        return {
            "threads with the GIL": read_stacks(running.read_text("utf-8", "replace")),
            "all threads that py-spy takes for busy": read_stacks(every.read_text("utf-8", "replace")),
        }


def _find_busiest(pids: Sequence[int]) -> int:
    before = {pid: read_cpu_seconds(pid) for pid in pids}
    time.sleep(0.5)
    return max(pids, key=lambda pid: read_cpu_seconds(pid) - before[pid])


def _record(pid: int, target: Path, seconds: int, options: Sequence[str]) -> None:
    program = _find_py_spy()
    if program is None:
        raise ProfileError(find_missing_py_spy())
    command = [program, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", "200", "--function"]
    command += ["--output", str(target), *options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    except subprocess.TimeoutExpired as error:
        raise ProfileError("py-spy did not come to an end") from error
    if run.returncode != 0 or not target.exists():
        raise ProfileError(f"py-spy failed, exit {run.returncode}: {run.stdout[-500:]}{run.stderr[-500:]}")


def read_stacks(stacks: str) -> Profile:
    """Add up raw stacks: on each line the frames, the innermost last, ``;`` between them, and the number of samples."""
    functions: Counter[str] = Counter()
    packages: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if not count.isdigit():
            continue
        innermost = stack.rpartition(";")[2]
        functions[innermost] += int(count)
        packages[_find_package(innermost)] += int(count)
    return Profile(functions.total(), functions, packages)


def _find_package(frame: str) -> str:
    # A frame reads "function (package/module.py:12)" or, from the standard library, "function (module.py:12)".
    path = frame.rpartition("(")[2].rstrip(")")
    return path.partition("/")[0] if "/" in path else path.partition(":")[0]
