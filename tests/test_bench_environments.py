"""The virtual environments of the bench's peers: when they are made, and what is said where they cannot be.

None is filled here: nothing is installed by a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.bench.environments import Environment
from tests.bench.plans import FETCHED_PEERS
from tests.servers import ROOT

ENVIRONMENT: Final = Environment("peer", ("invites-api-no-such-package >= 1",), ("invites-api-no-such-package",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # No index is asked and no folder searched.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "invites-api-bench"


def test_what_pip_cannot_install_is_a_reason(cache: Path) -> None:
    """An environment that cannot be filled gives the reason of pip in one line, and is tried again next time."""
    said: list[str] = []
    reason = ENVIRONMENT.ensure(said.append)
    assert reason is not None
    assert reason.startswith("peer could not be installed: No matching distribution found")
    assert "\n" not in reason
    assert said == [f"installing invites-api-no-such-package into {cache}/peer"]
    assert not ENVIRONMENT._is_made()
    assert ENVIRONMENT.find_versions() == {}


def test_cache_that_cannot_be_written_is_a_reason(cache: Path) -> None:
    """Where there can be no environment, that is what is said."""
    cache.write_text("")
    assert ENVIRONMENT.ensure(print) == f"no virtual environment in {cache}/peer: File exists"


def test_environment_is_kept_until_it_is_made_of_something_else(cache: Path) -> None:
    """One that is there is used as it is; other requirements, or a Python that has gone, make it anew."""
    (cache / "peer" / "bin").mkdir(parents=True)
    (python := cache / "peer" / "bin" / "python").symlink_to(sys.executable)
    (cache / "peer" / "made-of.json").write_text(ENVIRONMENT._stamp())
    said: list[str] = []
    assert ENVIRONMENT.ensure(said.append) is None
    assert said == []
    assert not replace(ENVIRONMENT, requirements=("invites-api-no-such-package >= 2",))._is_made()
    python.unlink()
    assert not ENVIRONMENT._is_made()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (Debian: apt install wrk)")
@pytest.mark.parametrize("slug", FETCHED_PEERS)
def test_peer_that_cannot_be_installed_is_named_as_missing(slug: str, cache: Path) -> None:
    """The command tells which peer is missing and why, and does not fail in another way."""
    cache.write_text("")
    argv = [sys.executable, "-P", "-m", "tests.bench", "--peers", "all", "--only", slug]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (2, "")
    reason = f"no virtual environment in {cache}/{slug}: File exists"
    assert run.stderr.splitlines()[-1] == f"bench: nothing to measure: {reason}"
