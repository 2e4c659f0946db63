"""Fixtures that all tests share: real objects, made cheap."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# Processes that tests start in the way of `spawn` look for the modules of the tests where this one has them from. Last
# in the list, so that the packages that are tested come from where they are installed.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)

pytest.register_assert_rewrite("tests.helpers", "tests.processes", "tests.stores.sqlite_files")

from invites_core.hashing import SecretHasher  # noqa: E402 (the rewriting comes before the imports that it is for)
from invites_core.service import ApiKeys, Invites  # noqa: E402
from invites_core.stores.memory import MemoryStore  # noqa: E402
from invites_core.testing import FakeClock  # noqa: E402
from tests.chromium import running_browser  # noqa: E402
from tests.postgresql import (  # noqa: E402
    INSTALL,
    PostgresqlServer,
    find_programs,
    new_database,
)
from tests.processes import Fork, ForkedChild, NewSignal, PythonProcess, Signal, StartPython  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["invites_core.testing.fixtures"]

StartPostgresql = Callable[..., PostgresqlServer]
"""The fixture ``start_postgresql``: takes the arguments of ``PostgresqlServer``, and returns one that runs."""

# A machine that is busy is no failure of the code.
settings.register_profile("invites", deadline=None)
settings.load_profile("invites")


@pytest.fixture
def clock(fake_clock: FakeClock) -> FakeClock:
    """A clock that stands still until it is advanced."""
    return fake_clock


@pytest.fixture
def hasher(cheap_hasher: SecretHasher) -> SecretHasher:
    """A hasher as in the product, whose hashes cost next to nothing."""
    return cheap_hasher


@pytest.fixture
def memory_store() -> MemoryStore:
    """An empty store of keys and invites."""
    return MemoryStore()


@pytest.fixture
def api_keys(memory_store: MemoryStore, hasher: SecretHasher, clock: FakeClock) -> ApiKeys:
    """The keys of the memory store."""
    return ApiKeys(memory_store, hasher=hasher, clock=clock)


@pytest.fixture
def invites(memory_store: MemoryStore, clock: FakeClock) -> Invites:
    """The invites of the memory store."""
    return Invites(memory_store, clock=clock)


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Starts functions in forked children, each with a ``result()``; none outlives the test."""
    children: list[ForkedChild] = []

    def start(function: Callable[[], Any]) -> ForkedChild:
        children.append(ForkedChild(function))
        return children[-1]

    yield start
    for child in children:
        child.end()


@pytest.fixture
def new_signal() -> Iterator[NewSignal]:
    """Makes signals between processes; none is left open after the test."""
    signals: list[Signal] = []

    def make() -> Signal:
        signals.append(Signal())
        return signals[-1]

    yield make
    for signal in signals:
        signal.close()


@pytest.fixture
def start_python() -> Iterator[StartPython]:
    """Starts scripts in fresh interpreters, each with a ``finish()``; none outlives the test."""
    started: list[PythonProcess] = []

    def start(script: str, *arguments: object) -> PythonProcess:
        started.append(PythonProcess(script, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture(scope="session")
def postgresql_programs() -> Path:
    """The folder of PostgreSQL's programs: told by INVITES_TEST_POSTGRESQL, or found; skips where there are none."""
    told = os.environ.get("INVITES_TEST_POSTGRESQL", "")
    is_path = bool(told) and "://" not in told
    found = find_programs(Path(told) if is_path else None)
    if found is None and is_path:
        pytest.fail(f"INVITES_TEST_POSTGRESQL is {told!r}, and there are no initdb and postgres")
    if found is None:
        pytest.skip(INSTALL)
    return found


@pytest.fixture(scope="session")
def postgresql_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server on which databases can be made: that of INVITES_TEST_POSTGRESQL, or one of the run's own.

    Tests that stop a server, or change its settings, start theirs with ``start_postgresql``.
    """
    told = os.environ.get("INVITES_TEST_POSTGRESQL", "")
    if "://" in told:
        yield told
        return
    with PostgresqlServer(programs=request.getfixturevalue("postgresql_programs")) as server:
        yield server.url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The address of an empty database; at the end no connection of the product may be open, and it is dropped."""
    with new_database(postgresql_server) as url:
        yield url


@pytest.fixture
def start_postgresql(postgresql_programs: Path) -> Iterator[StartPostgresql]:
    """Starts servers that a test can stop, kill and start again; none outlives the test."""
    with contextlib.ExitStack() as started:
        yield lambda **options: started.enter_context(PostgresqlServer(programs=postgresql_programs, **options))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test printed be passed from one process of pytest to another, whatever it is."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium; skips where there is none, or fails where INVITES_TEST_CHROMIUM promises one.

    As long as it runs, so does the loop of asyncio that speaks to it, and `asyncio.run` refuses to run another one.
    """
    with running_browser() as started:
        yield started


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Gives the URL of an empty store of a kind: one of `STORE_KINDS`."""
    with contextlib.ExitStack() as databases:

        def find(kind: str) -> str:
            if kind == "postgresql":
                # Not the fixture of one database: that would be gone before what was opened on it is closed.
                return databases.enter_context(new_database(request.getfixturevalue("postgresql_server")))
            return f"sqlite:///{tmp_path}/invites.db" if kind == "sqlite" else "memory:"

        yield find
