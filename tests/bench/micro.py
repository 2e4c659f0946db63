"""The library by itself, in this process and on one thread: what one call of it takes, on each store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from invites_core import ApiKeys, Invites, SecretHasher, open_store
from invites_core.keys import parse_key
from invites_core.store import Store
from tests.bench.peers import HOST, OpenDatabase, new_sqlite

__all__ = ["Micro", "format_micro", "time_library"]

_ROUNDS: Final = 15
_COLD: Final = 15
_WARM: Final = 2_000
_CHANGES: Final = 100


@dataclass(frozen=True, slots=True)
class Micro:
    """What one call takes.

    Attributes:
        what: Which.
        store: On which store, or ``-`` where none is asked.
        median_us: The median of the rounds' means, in microseconds.
        best_us: The best round's mean.
        p90_us: The 90th percentile of the rounds' means.
        calls: How many calls there were in all.
    """

    what: str
    store: str
    median_us: float
    best_us: float
    p90_us: float
    calls: int


def time_library(open_postgresql: OpenDatabase | None, folder: Path, say: Callable[[str], None]) -> list[Micro]:
    """Time the calls that a service is made of.

    Args:
        open_postgresql: Gives an empty database of PostgreSQL; None: there is none.
        folder: Where files go, on the disk that is measured.
        say: Is told what is going on.
    """
    found: list[Micro] = []
    with contextlib.ExitStack() as stack:
        (place := folder / "micro").mkdir()
        urls = {"memory": "memory:", "sqlite": stack.enter_context(new_sqlite(place))}
        if open_postgresql is not None:
            urls["postgresql"] = stack.enter_context(open_postgresql(place))
        for name, url in urls.items():
            say(f"the library on {name}")
            store = stack.enter_context(contextlib.closing(open_store(url)))
            found += _time_store(name, store, first=not found)
    return found


def _time_store(name: str, store: Store, *, first: bool) -> Iterator[Micro]:
    keys, invites = ApiKeys(store), Invites(store)
    issued = keys.create(HOST, name="bench")
    key = keys.verify(issued.combined)
    if first:
        yield _time("parse a key", "-", _WARM, lambda: parse_key(issued.combined))
    yield _time("verify, warm", name, _WARM, lambda: keys.verify(issued.combined))
    yield _time_cold(name, store, issued.combined)
    made = iter([invites.create(key).token for _ in range(_ROUNDS * _CHANGES)])
    yield _time("create", name, _CHANGES, lambda: invites.create(key))
    yield _time("redeem", name, _CHANGES, lambda: invites.redeem(next(made)))


def _time_cold(name: str, store: Store, combined: str) -> Micro:
    """Time a check that nothing is remembered of, by a hasher that is new each time."""
    seconds = []
    for _ in range(_COLD):
        fresh = ApiKeys(store, hasher=SecretHasher())
        start = time.perf_counter()
        fresh.verify(combined)
        seconds.append(time.perf_counter() - start)
    return _summarize("verify, cold", name, seconds, _COLD)


def _time(what: str, store: str, calls: int, call: Callable[[], object]) -> Micro:
    return _summarize(what, store, list(_rounds(calls, call)), calls * _ROUNDS)


def _rounds(calls: int, call: Callable[[], object]) -> Iterator[float]:
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        yield (time.perf_counter() - start) / calls


def _summarize(what: str, store: str, seconds: Sequence[float], calls: int) -> Micro:
    best, worst = min(seconds), quantiles(seconds, n=10)[-1]
    return Micro(what, store, 1e6 * median(seconds), 1e6 * best, 1e6 * worst, calls)


def format_micro(timings: Sequence[Micro]) -> list[tuple[str, ...]]:
    """Return the rows of a table, the headings first."""
    table: list[tuple[str, ...]] = [("in process, one thread", "store", "median us", "best us", "p90 us", "calls")]
    table += [
        (one.what, one.store, f"{one.median_us:.1f}", f"{one.best_us:.1f}", f"{one.p90_us:.1f}", str(one.calls))
        for one in timings
    ]
    return table
