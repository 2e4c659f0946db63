"""The pages build."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """Sphinx builds every page, and warns of nothing."""
    if not (find_spec("sphinx") and find_spec("myst_parser")):
        missing = pytest.fail if os.environ.get("INVITES_TEST_SPHINX") else pytest.skip
        missing("there is no Sphinx: install the extra docs (pip install '.[docs]')")
    options = ["-W", "--keep-going", "-b", "html", "-d", "trees"]
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "sphinx", *options, ROOT / "docs", "html"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    built = {page.stem for page in (tmp_path / "html").glob("*.html")} - {"genindex", "search"}
    assert built == {page.stem for page in (ROOT / "docs").glob("*.md")}
