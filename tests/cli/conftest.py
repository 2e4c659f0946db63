"""Fixtures for the tests of the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run, run_main, url_of
from tests.wsgi.support import restored_logger


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An environment without settings, a home of its own, and an empty folder to be in."""
    for name in ("INVITES_CONFIG", "INVITES_DATABASE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with restored_logger():
        yield home


class NoServer:
    """Stands where gunicorn would start: no test of the command means to serve from its own process."""

    def __init__(self, settings: object) -> None:
        del settings

    def run(self) -> None:
        pytest.fail("the command started to serve")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps `serve` from serving where something should have stopped it."""
    monkeypatch.setattr("invites_wsgi.server.Server", NoServer)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The path of the test's database, which is not there yet, in a private folder."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder / "invites.db"


@pytest.fixture
def store(database: Path) -> Iterator[SqliteStore]:
    """The test's database, made and open."""
    opened = SqliteStore(database)
    yield opened
    opened.close()


@pytest.fixture
def invoke(database: Path, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs the command's ``main`` in this process."""

    def run(*arguments: str, database: Path | str | None = database) -> Run:
        options: list[str] = []
        if database is not None:
            options = ["--database", url_of(database) if isinstance(database, Path) else database]
        capsys.readouterr()
        code = run_main([*options, *arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run
