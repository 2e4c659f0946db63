"""Creations where a thousand invites are pending: the service on SQLite beside Prosody on its default storage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from invites_core.clock import read_clock, system_clock
from invites_core.stores import open_invite_store, open_store
from tests.bench.peers import (
    HOST,
    Peer,
    Service,
    Settings,
    creating_only,
    find_missing_invites_api,
    make_loads,
    new_sqlite,
    run_invites_api,
)
from tests.bench.pending import fill_store
from tests.bench.plans import Plan
from tests.servers import Prosody

__all__ = ["make_thousand_plan"]

PENDING = 1_000


def make_thousand_plan() -> Plan:
    """Return the plan; each measurement begins with as many pending invites."""
    ours = partial(creating_only, partial(run_invites_api, _new_filled_sqlite, 1))
    return Plan(
        (
            Peer("thousand", "invites-api, SQLite, 1,000 pending", find_missing_invites_api, ours, is_python=True),
            Peer("prosody-thousand", "Prosody, default storage, 1,000 pending", Prosody.find_missing, _run_prosody),
        ),
        {"x Prosody": "prosody-thousand"},
        ("x Prosody: times the rate of Prosody on its default storage.",),
        (f"Each had {PENDING:,} pending invites before the load.",),
    )


@contextlib.contextmanager
def _new_filled_sqlite(folder: Path) -> Iterator[str]:
    with new_sqlite(folder) as url:
        with contextlib.closing(open_store(url)) as store:
            fill_store(store, PENDING, read_clock(system_clock))
        yield url


@contextlib.contextmanager
def _run_prosody(folder: Path, settings: Settings) -> Iterator[Service]:
    del settings  # It is one process with one thread.
    prosody = Prosody(folder)
    key = prosody.create_key(HOST, "bench")
    with prosody:
        with contextlib.closing(open_invite_store(f"prosody://{prosody.socket}")) as store:
            fill_store(store, PENDING, read_clock(system_clock), batch=500)
        yield Service((prosody,), make_loads(key)[:1])
