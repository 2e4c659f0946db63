"""Fixtures for the tests of the documentation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

FindProgram = Callable[[str, str], str]
"""The fixture ``find_program``: takes a command and what to install for it, and returns the command's path."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder of a reader, empty."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def find_program() -> FindProgram:
    """Finds a program by INVITES_TEST_NAME or on PATH; without the variable a test skips where it is missing."""

    def find(name: str, install: str) -> str:
        told = os.environ.get(f"INVITES_TEST_{name.upper()}")
        # Debian's nginx is in a folder that is not on everybody's PATH.
        found = shutil.which(told or name, path=f"{os.environ['PATH']}:/usr/sbin")
        if found is None and told:
            pytest.fail(f"INVITES_TEST_{name.upper()} is {told!r}, and there is no such command")
        if found is None:
            pytest.skip(f"there is no {name}: {install}")
        return found

    return find
