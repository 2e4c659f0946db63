"""The service in front of a Prosody, beside that Prosody's own mod_invites_api: on each storage that Prosody has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, Literal

from invites_core.clock import read_clock, system_clock
from invites_core.invites import Invite
from invites_core.store import InviteStore
from invites_core.stores import open_invite_store
from invites_core.testing import make_invite
from tests.bench.peers import (
    HOST,
    OpenDatabase,
    Peer,
    Service,
    Settings,
    creating_only,
    find_missing_invites_api,
    make_loads,
    new_sqlite,
    run_invites_api,
)
from tests.bench.pending import Timing, fill_store, time_calls
from tests.bench.plans import Plan
from tests.proofs.prosody_services import agent_of
from tests.servers import Prosody

__all__ = ["make_prosody_plan", "time_prosody"]

Storage = Literal["default", "sqlite", "postgresql"]
StartProsody = Callable[[Path], AbstractContextManager[Prosody]]

STORAGES: Final[tuple[Storage, ...]] = ("default", "sqlite", "postgresql")
_NAMES: Final = {"default": "default storage", "sqlite": "SQLite", "postgresql": "PostgreSQL"}
ROWS: Final = (0, 1_000, 10_000)
_CALLS: Final = 15


def make_prosody_plan(new_database: OpenDatabase) -> Plan:
    """Return the plan that measures creations over HTTP, gunicorn, agent and socket beside mod_invites_api.

    Args:
        new_database: Gives an empty database of PostgreSQL.
    """
    peers = []
    for storage in STORAGES:
        start = partial(_prosody_on, storage, new_database)
        ours = partial(creating_only, partial(_run_service, start))
        peers.append(Peer(f"agent-{storage}", f"invites-api, Prosody on {_NAMES[storage]}", _find_missing, ours, True))
        peers.append(
            Peer(f"api-{storage}", f"mod_invites_api on {_NAMES[storage]}", _find_missing, partial(_run, start))
        )
    return Plan(
        tuple(peers),
        {f"x {_NAMES[storage]}": f"api-{storage}" for storage in STORAGES},
        ("x: times the rate of mod_invites_api on that storage.",),
        (
            "invites-api is gunicorn, an agent, and a Prosody that has the invites; its keys are on SQLite.",
            "Each time Prosody starts on an empty storage.",
        ),
    )


def _find_missing() -> str | None:
    return find_missing_invites_api() or Prosody.find_missing_postgresql()


@contextlib.contextmanager
def _prosody_on(storage: Storage, new_database: OpenDatabase, folder: Path) -> Iterator[Prosody]:
    with ExitStack() as stack:
        if storage == "default":
            prosody = Prosody(folder, "internal")
        elif storage == "sqlite":
            prosody = Prosody(folder, "sql")
        else:
            url = stack.enter_context(new_database(folder))
            prosody = Prosody(folder, "sql", sql=Prosody.sql_on_postgresql(url))
        yield prosody


@contextlib.contextmanager
def _run(start: StartProsody, folder: Path, settings: Settings) -> Iterator[Service]:
    del settings  # It is one process with one thread.
    with start(folder) as prosody:
        key = prosody.create_key(HOST, "bench")
        with prosody:
            yield Service((prosody,), make_loads(key)[:1])


@contextlib.contextmanager
def _run_service(start: StartProsody, folder: Path, settings: Settings) -> Iterator[Service]:
    (place := folder / "p").mkdir()
    with (
        start(place) as prosody,
        prosody,
        agent_of(prosody, folder) as url,
        run_invites_api(new_sqlite, 1, folder, settings, invites=url) as service,
    ):
        yield service


def time_prosody(new_database: OpenDatabase, folder: Path, say: Callable[[str], None]) -> dict[str, list[Timing]]:
    """Time how long one call holds Prosody, which does nothing else meanwhile, by what it stores and where.

    Args:
        new_database: Gives an empty database of PostgreSQL.
        folder: Where the data goes.
        say: Is told what is going on.

    Returns:
        The name of a storage -> the timings, of the calls as the store makes them.
    """
    timings: dict[str, list[Timing]] = {}
    for storage in STORAGES:
        (place := folder / f"holding-{storage}").mkdir()
        with _prosody_on(storage, new_database, place) as prosody, prosody:
            store = open_invite_store(f"prosody://{prosody.socket}?max_rows=1000000")
            found, held = [], 0
            for rows in ROWS:
                say(f"calls of a Prosody on {_NAMES[storage]} with {rows:,} invites")
                fill_store(store, rows - held, read_clock(system_clock), batch=500)
                held = rows
                found += list(_time_verbs(store, rows, read_clock(system_clock)))
            store.close()
        timings[_NAMES[storage]] = found
    return timings


def _time_verbs(store: InviteStore, rows: int, now: datetime) -> Iterator[Timing]:
    """Time each verb; what is made is taken away again, so that the number of rows stays."""
    made = [_make(now) for _ in range(_CALLS)]

    def redeem(token: str) -> None:
        store.redeem_invite(token, redemption_id="once", redeemer=None, username=None, host=HOST, now=now)

    def release(token: str) -> None:
        store.release_redemption(token, redemption_id="once", host=HOST, now=now)

    def revoke(token: str) -> None:
        store.revoke_invite(token, by="bench", host=HOST, now=now)

    yield time_calls("add one", rows, (partial(store.add_invites, [invite]) for invite in made))
    for what, call in (("find", store.find_invite), ("redeem", redeem), ("release", release), ("revoke", revoke)):
        yield time_calls(f"{what} one", rows, (partial(call, invite.token) for invite in made))
    page = partial(store.list_invites, HOST, now=now, limit=50)
    yield time_calls("list of 50", rows, (page for _ in range(_CALLS)))
    sweep = partial(store.revoke_invites_from, "nobody", by="bench", host=HOST, now=now, limit=500)
    yield time_calls("sweep that finds nothing", rows, (sweep for _ in range(_CALLS)))
    purge = partial(store.purge_invites, before=datetime.fromtimestamp(0, now.tzinfo), limit=500)
    yield time_calls("purge that finds nothing", rows, (purge for _ in range(_CALLS)))


def _make(now: datetime) -> Invite:
    return make_invite(host=HOST, created_at=now, expires_at=None, source="bench")
