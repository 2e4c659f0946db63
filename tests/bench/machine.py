"""What the measurements were made on: the cores, the file system, and the versions of all that takes part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.servers import ROOT

__all__ = ["count_open_files", "describe_machine", "find_filesystem", "find_folder_on_disk"]

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


def find_filesystem(folder: Path) -> str:
    """Name the type of file system that a folder lies on, ``unknown`` where there is no /proc/self/mounts."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return "unknown"
    found, longest = "unknown", -1
    for line in mounts:
        point, kind = line.split(" ")[1:3]
        # A space in a path stands there as \040. Of two mounts on one point the later hides the earlier.
        point = point.replace("\\040", " ")
        if folder.resolve().is_relative_to(point) and len(point) >= longest:
            found, longest = kind, len(point)
    return found


def find_folder_on_disk() -> Path:
    """Find a folder for the data whose file system is not in memory: what fsync costs there is nothing."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), ROOT / "var"]
    for folder in candidates:
        if folder.is_dir() and os.access(folder, os.W_OK) and find_filesystem(folder) not in _IN_MEMORY:
            return folder
    candidates[-1].mkdir(exist_ok=True)
    return candidates[-1]


def describe_machine(folder: Path) -> dict[str, str | int]:
    """Describe what the measurements run on, name -> value, in the order to print it.

    Args:
        folder: Where the data is.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    return {
        "cores": usable,
        "processor": _find_processor(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "filesystem": find_filesystem(folder),
        "python": platform.python_version(),
        "sqlite": _find_sqlite_version(),
        **{name: _find_package_version(name) for name in ("gunicorn", "werkzeug", "argon2-cffi")},
        "prosody": _find_version(["prosodyctl", "about"], r"^Prosody (\d\S*)"),
        "wrk": _find_version(["wrk", "--version"], r"^wrk (\S+)"),
    }


def _find_processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"


def _find_sqlite_version() -> str:
    """The SQLite inside apsw, which is the one that the service uses; Python's own may be another."""
    try:
        # Here, because the report is to come out even where the driver does not load.
        import apsw
    except ImportError:
        return "missing"
    return str(apsw.sqlite_lib_version())


def _find_package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _find_version(command: Sequence[str], pattern: str) -> str:
    if shutil.which(command[0]) is None:
        return "missing"
    # Neither command is certain to have a status of zero: wrk has 1 after it has printed its version.
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    found = re.search(pattern, run.stdout, re.MULTILINE)
    return found[1] if found else "unknown"


def count_open_files(pid: int) -> int:
    """Return how many descriptors a process has, 0 where there is no /proc."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
