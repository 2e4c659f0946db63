"""A store that holds many pending invites: creations beside those on an empty one, its lists, and its purge."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final

from invites_core.invites import Invite, generate_token
from invites_core.keys import format_source
from invites_core.store import InviteStore
from tests.bench.peers import HOST, OpenDatabase, Peer, creating_only, find_missing_invites_api, run_invites_api
from tests.bench.plans import Plan

__all__ = ["SOURCES", "Timing", "fill_store", "format_timings", "make_pending_plan", "time_calls", "time_store"]

SOURCES: Final = 10
_BATCH: Final = 2000
# As the service asks for them: a page of a list by default, and a step of a purge.
_PAGE: Final = 100
_STEP: Final = 500
_REPEATS: Final = 21
_PURGED_STEPS: Final = 200
_LISTS: Final[dict[str, dict[str, Any]]] = {
    "all": {},
    **{f"the {state}": {"state": state} for state in ("pending", "used", "revoked", "expired")},
    "a source": {"source": format_source("bench-0")},
    "the pending of a source": {"state": "pending", "source": format_source("bench-0")},
}


@dataclass(frozen=True, slots=True)
class Timing:
    """How long something took on a store.

    Attributes:
        what: What.
        rows: How many invites the store was filled with.
        calls: How many calls were timed.
        median_ms: The median of them, in milliseconds.
        worst_ms: The longest.
    """

    what: str
    rows: int
    calls: int
    median_ms: float
    worst_ms: float


def fill_store(store: InviteStore, count: int, now: datetime, *, batch: int = _BATCH) -> None:
    """Add pending invites of `SOURCES` keys, made in the five days before a time, that expire a week after it.

    Args:
        store: The store.
        count: How many.
        now: The time (aware UTC, whole seconds).
        batch: How many are added at once.
    """
    expires_at = now + timedelta(days=7)
    for first in range(0, count, batch):
        store.add_invites(
            [
                Invite(
                    token=generate_token(),
                    host=HOST,
                    created_at=now - timedelta(seconds=(count - number) * 432_000 // count),
                    expires_at=expires_at,
                    source=format_source(f"bench-{number % SOURCES}"),
                )
                for number in range(first, min(first + batch, count))
            ]
        )


def make_pending_plan(new_database: OpenDatabase, filled_url: str, count: int) -> Plan:
    """Return the plan that measures creations on a filled store beside those on an empty one.

    Args:
        new_database: Gives an empty database.
        filled_url: The database that is filled already.
        count: With how many invites.
    """

    def open_filled(folder: Path) -> contextlib.AbstractContextManager[str]:
        del folder  # It was filled once, somewhere else.
        return contextlib.nullcontext(filled_url)

    def make_peer(slug: str, title: str, open_database: OpenDatabase) -> Peer:
        run = partial(creating_only, partial(run_invites_api, open_database, 1))
        return Peer(slug, title, find_missing_invites_api, run, is_python=True)

    return Plan(
        (
            make_peer("empty", "on an empty store", new_database),
            make_peer("filled", f"on {count:,} pending invites", open_filled),
        ),
        {"x empty": "empty"},
        ("x empty: times the rate on an empty store.",),
        (
            f"The filled store had {count:,} pending invites of {SOURCES} keys at first.",
            "It is the same one in all rounds, and keeps what they create.",
        ),
    )


def time_store(store: InviteStore, rows: int, now: datetime) -> Iterator[Timing]:
    """Time the lists and the purge of a store, through the library; the last of it deletes invites.

    Args:
        store: The store, which nobody else uses.
        rows: How many invites it holds, for the report.
        now: The time at which states are told.
    """
    for name, fields in _LISTS.items():
        for place, cursor in (("first", None), ("middle", _find_middle(store, now, fields))):
            if place == "first" or cursor is not None:
                page = partial(store.list_invites, HOST, now=now, limit=_PAGE, cursor=cursor, **fields)
                yield time_calls(f"list of {name}, {place} page", rows, (page for _ in range(_REPEATS)))
    steps = _purge(store, now - timedelta(days=30))
    yield _summarize("step of a purge, nothing due", rows, list(steps))
    steps = _purge(store, now + timedelta(days=30))
    yield _summarize("step of a purge, all due", rows, list(islice(steps, _PURGED_STEPS)))


def _find_middle(store: InviteStore, now: datetime, fields: dict[str, Any]) -> str | None:
    """Walk through a list and return the cursor in the middle of it; None for one of a single page."""
    cursors = []
    cursor: str | None = None
    while (cursor := store.list_invites(HOST, now=now, limit=1000, cursor=cursor, **fields).next) is not None:
        cursors.append(cursor)
    return cursors[len(cursors) // 2] if cursors else None


def _purge(store: InviteStore, before: datetime) -> Iterator[float]:
    cursor: str | None = None
    while True:
        start = time.perf_counter()
        cursor = store.purge_invites(before=before, limit=_STEP, cursor=cursor).next
        yield time.perf_counter() - start
        if cursor is None:
            return


def time_calls(what: str, rows: int, calls: Iterator[Callable[[], object]]) -> Timing:
    """Time calls one after another, on a store of so many rows."""
    seconds = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return _summarize(what, rows, seconds)


def _summarize(what: str, rows: int, seconds: Sequence[float]) -> Timing:
    return Timing(what, rows, len(seconds), 1000 * median(seconds), 1000 * max(seconds))


def format_timings(name: str, timings: Sequence[Timing]) -> list[tuple[str, ...]]:
    """Return the rows of a table of this name, the headings first, with the stores side by side, the smallest first."""
    sizes = sorted({timing.rows for timing in timings})
    found = {(timing.what, timing.rows): timing for timing in timings}
    headings = [f"{figure} ms, {size:,} rows" for size in sizes for figure in ("median", "worst")]
    table = [(name, "calls", *headings)]
    # A small store has fewer of them: a list of one page has none in the middle.
    for what in dict.fromkeys(timing.what for timing in sorted(timings, key=lambda timing: -timing.rows)):
        row = [found.get((what, size)) for size in sizes]
        cells = [
            "-" if one is None else f"{value:.2f}"
            for one in row
            for value in ((one.median_ms, one.worst_ms) if one else (0, 0))
        ]
        table.append((what, "/".join(str(one.calls) if one else "-" for one in row), *cells))
    return table
