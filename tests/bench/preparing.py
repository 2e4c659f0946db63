"""What must be there before the first round: the plan, and for some a PostgreSQL server or a store that is filled."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from invites_core.clock import read_clock, system_clock
from invites_core.stores import open_store
from tests.bench.machine import find_filesystem
from tests.bench.page import make_page_plan
from tests.bench.peers import OpenDatabase, new_sqlite
from tests.bench.pending import Timing, fill_store, make_pending_plan, time_store
from tests.bench.plans import DEFAULT, Plan, make_fetched_plan, make_sweep

if TYPE_CHECKING:
    from tests.postgresql import PostgresqlServer

__all__ = ["Run", "find_missing_postgresql", "preparing"]

_DRIVERS: Final = ("psycopg", "psycopg_pool")
# What the lists and the purge of the filled store are held against.
_SMALL_PART: Final = 100


@dataclass(frozen=True, slots=True)
class Run:
    """What is ready to be measured.

    Attributes:
        plan: What.
        machine: What more it runs on, name -> value.
        time_library: Times what goes through the library, after the rounds, by the name of a table; None: nothing does.
    """

    plan: Plan
    machine: dict[str, str | int] = field(default_factory=dict)
    time_library: Callable[[], dict[str, list[Timing]]] | None = None


def find_missing_postgresql() -> str | None:
    """Say what to install where a PostgreSQL server or its driver is missing, or None."""
    if lacking := [name for name in _DRIVERS if importlib.util.find_spec(name) is None]:
        return f"{', '.join(lacking)} missing: pip install -e '.[postgresql]'"
    from tests.postgresql import INSTALL, find_programs

    return None if find_programs() else INSTALL


@contextlib.contextmanager
def preparing(
    database: Literal["sqlite", "postgresql", "prosody"],
    *,
    sweep: bool,
    page: bool = False,
    all_peers: bool = False,
    pending: int | None,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[Run]:
    """Make ready what a run needs, and take it away at the end.

    Args:
        database: Where the service stores.
        sweep: Whether numbers of connections and workers are compared.
        page: Whether it is pages that are served.
        all_peers: Whether peers are measured that have to be installed first; for the plan without options.
        pending: How many pending invites a filled store is to have; None: there is none.
        folder: Where files go.
        say: Is told what is going on, a line at a time.

    Raises:
        ServerFailed: PostgreSQL did not start.
        StorageError: A store could not be filled.
    """
    with contextlib.ExitStack() as stack:
        open_database: OpenDatabase = new_sqlite
        plan = make_sweep() if sweep else make_page_plan() if page else DEFAULT
        if all_peers:
            plan = make_fetched_plan(say)
        machine: dict[str, str | int] = {}
        if database in ("postgresql", "prosody"):
            # Here, because neither PostgreSQL nor its driver is needed for what is on SQLite.
            from tests.bench import postgresql

            server = stack.enter_context(postgresql.serving_postgresql())
            open_database, machine = postgresql.new_on(server), _describe(server)
            plan = postgresql.make_postgresql_plan(open_database)
        if database == "prosody":
            from tests.bench import prosody

            plan = prosody.make_prosody_plan(open_database)
            yield Run(plan, machine, partial(prosody.time_prosody, open_database, folder, say))
        elif pending is None:
            yield Run(plan, machine)
        else:
            stores = stack.enter_context(_filling(open_database, pending, folder, say))
            plan = make_pending_plan(open_database, stores[-1][0], pending)
            yield Run(plan, machine, lambda: {"through the library": _time(stores, say)})


def _describe(server: PostgresqlServer) -> dict[str, str | int]:
    from tests.bench.postgresql import find_server_version

    return {
        "postgresql": find_server_version(server.url),
        "filesystem of postgresql": find_filesystem(server.folder),
    }


@contextlib.contextmanager
def _filling(
    open_database: OpenDatabase, pending: int, folder: Path, say: Callable[[str], None]
) -> Iterator[list[tuple[str, int]]]:
    """Fill a small store and a large one, and give the URL and the size of each."""
    stores = []
    with contextlib.ExitStack() as stack:
        for name, size in (("small", max(1, pending // _SMALL_PART)), ("filled", pending)):
            place = folder / name
            place.mkdir()
            url = stack.enter_context(open_database(place))
            start = time.monotonic()
            with contextlib.closing(open_store(url)) as store:
                fill_store(store, size, read_clock(system_clock))
            _settle(url)
            say(f"filled a store with {size:,} pending invites in {time.monotonic() - start:.0f} s")
            stores.append((url, size))
        yield stores


def _settle(url: str) -> None:
    """Let PostgreSQL do at once what autovacuum would do in the middle of a measurement."""
    if url.startswith("postgresql://"):
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")


def _time(stores: list[tuple[str, int]], say: Callable[[str], None]) -> list[Timing]:
    timings: list[Timing] = []
    for url, size in stores:
        say(f"lists and purge of {size:,} pending invites")
        with contextlib.closing(open_store(url)) as store:
            timings += time_store(store, size, read_clock(system_clock))
    return timings
