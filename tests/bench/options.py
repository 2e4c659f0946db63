"""What the commands of the bench share: their options, what they say, and how they end."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from tests.bench.machine import find_filesystem

__all__ = ["disk_folder", "end", "find_missing_packages", "output_file", "positive", "say"]

# Whatever needs one of these is imported after it was looked for, so that what is missing is told in a sentence.
_NEEDED: Final = ("apsw", "argon2", "gunicorn", "werkzeug")


def find_missing_packages() -> str | None:
    """Say which packages of Python are missing and what to do, or None."""
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} missing: run bin/test once, or pip install -e '.[test]'" if lacking else None


def positive(text: str) -> int:
    """Read a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def output_file(text: str) -> Path:
    """Read the name of a file that can be written."""
    # Known at once, and not after minutes of measuring.
    file = Path(text).absolute()
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}")
    return file


def disk_folder(text: str) -> Path:
    """Read the name of a folder; one that is in memory is warned of."""
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text}")
    if find_filesystem(folder) == "tmpfs":
        say(f"warning: {text} is in memory: a sync costs nothing there, so the figures are too good")
    return folder


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """End at a signal."""
    # Ends through every "with" on the way, so that no server stays behind.
    raise SystemExit(128 + number)
