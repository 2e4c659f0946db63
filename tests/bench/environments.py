"""Virtual environments of their own, for peers that must not be installed beside the service."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Environment", "find_cache_folder"]

_PIP_SECONDS: Final = 900.0
_VERSIONS = "import importlib.metadata, sys; print(*(importlib.metadata.version(name) for name in sys.argv[1:]))"


def find_cache_folder() -> Path:
    """Return the folder of all environments: ``invites-api-bench`` in ``$XDG_CACHE_HOME``, which is ``~/.cache``."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    # What is relative must be ignored, says the XDG Base Directory Specification.
    parent = Path(caches) if Path(caches).is_absolute() else Path(os.path.expanduser("~/.cache"))
    return parent / "invites-api-bench"


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment, which is made where it is needed and kept for the next run.

    Attributes:
        name: Its name, that of its folder.
        requirements: What pip installs into it.
        packages: Those of which the versions are told.
    """

    name: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is."""
        return find_cache_folder() / self.name

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"

    def ensure(self, say: Callable[[str], None]) -> str | None:
        """Make it if it is not there yet, or was made of other requirements.

        Args:
            say: Is told before something is installed.

        Returns:
            Why it could not be made, in a line, or None.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            # Two runs can be started at once, and pip expects to be alone in its environment.
            with (self.folder.parent / f"{self.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return None if self._is_made() else self._make(say)
        except OSError as error:
            return f"no virtual environment in {self.folder}: {error.strerror or error}"

    def find_versions(self) -> dict[str, str]:
        """Return the version of each of its packages; none where it cannot tell."""
        argv = [str(self.python), "-I", "-c", _VERSIONS, *self.packages]
        run = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        found = run.stdout.split()
        return dict(zip(self.packages, found, strict=True)) if len(found) == len(self.packages) else {}

    def _stamp(self) -> str:
        return json.dumps([platform.python_version(), str(self.folder), *self.requirements])

    def _is_made(self) -> bool:
        file = self.folder / "made-of.json"
        if not file.is_file() or file.read_text("utf-8") != self._stamp():
            return False
        # The Python that it was made with can have gone since.
        return self.python.exists()

    def _make(self, say: Callable[[str], None]) -> str | None:
        say(f"installing {', '.join(self.packages)} into {self.folder}")
        # -I: neither this checkout nor the folder that the command is called in is part of it.
        make = [sys.executable, "-I", "-m", "venv", "--clear", str(self.folder)]
        pip = [str(self.python), "-I", "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
        for argv in (make, [*pip, "install", "--retries", "2", *self.requirements]):
            try:
                quiet = subprocess.DEVNULL
                run = subprocess.run(argv, stdin=quiet, capture_output=True, text=True, timeout=_PIP_SECONDS)
            except subprocess.TimeoutExpired:
                return f"{self.name} could not be installed within {_PIP_SECONDS:g} s"
            if run.returncode != 0:
                return f"{self.name} could not be installed: {_find_reason(run.stdout + run.stderr)}"
        # Last, so that one that was cut short is made anew.
        (self.folder / "made-of.json").write_text(self._stamp(), "utf-8")
        return None


def _find_reason(printed: str) -> str:
    """Find the line that tells why: the last error, or else the last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1]).removeprefix("ERROR: ")
