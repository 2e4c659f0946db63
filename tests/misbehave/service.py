"""The service that is misbehaved to: its keys, its memory, and what its metrics say of argon2."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from invites_core import ApiKeys, open_store
from invites_wsgi.metrics import SAMPLE_SECONDS
from tests.bench.peers import HOST, Service, Settings, new_sqlite, run_invites_api
from tests.bench.processes import read_rss_mib
from tests.servers import Server, free_port

__all__ = ["MemoryWatch", "Victim", "count_checks", "make_keys", "serving"]

KEYS_FILE: Final = "keys.txt"
BATCH: Final = 50
LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Victim:
    """The service, with its default settings, on a SQLite database.

    Attributes:
        server: It; it can be stopped and started again.
        service: The same with its workers.
        warm: The key of the callers who behave.
        keys: Keys that nobody has used since it started.
        metrics_port: Where its metrics are on 127.0.0.1.
    """

    server: Server
    service: Service
    warm: str = field(repr=False)
    keys: list[str] = field(repr=False)
    metrics_port: int


def make_keys(url: str, count: int, say: Callable[[str], None]) -> list[str]:
    """Make keys, each hashed with what a hash of the service costs, on all cores.

    Args:
        url: The database, which is there.
        count: How many.
        say: Is told how it goes on.
    """
    made: list[str] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = [min(BATCH, count - done) for done in range(0, count, BATCH)]
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        for some in pool.map(_make_some, [url] * len(sizes), sizes):
            made += some
            if len(made) % 1000 < BATCH:
                say(f"made {len(made):,} keys of {count:,}")
    return made


def _make_some(url: str, count: int) -> list[str]:
    store = open_store(url, create=False)
    try:
        keys = ApiKeys(store)
        return [keys.create(HOST, name="cold").combined for _ in range(count)]
    finally:
        store.close()


@contextmanager
def serving(folder: Path, keys: int, settings: Settings, say: Callable[[str], None]) -> Iterator[Victim]:
    """Serve a database with so many keys, and stop it.

    Args:
        folder: Where its data goes. What an earlier run has left there, keys included, is used again.
        keys: How many keys there are at least, besides the one of those who behave.
        settings: How many workers and threads it has.
        say: Is told what takes long.
    """
    port = free_port()
    with run_invites_api(new_sqlite, 1, folder, settings, metrics=f"127.0.0.1:{port}") as service:
        made = _find_keys(folder)
        lacking = keys - len(made)
        if lacking > 0:
            with new_sqlite(folder) as url:
                made += make_keys(url, lacking, say)
            # Private from birth: with --folder the database that they open stays.
            with open(os.open(folder / KEYS_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write("".join(f"{key}\n" for key in made))
        warm = service.loads[0].target.partition("key=")[2]
        yield Victim(service.servers[0], service, warm, made, port)


def _find_keys(folder: Path) -> list[str]:
    file = folder / KEYS_FILE
    return file.read_text("utf-8").split() if file.exists() else []


def count_checks(victim: Victim) -> int:
    """Count the computations of argon2 that were done since the start, by all workers.

    Raises:
        OSError: The metrics cannot be had.
    """
    # The workers look at their hashers so often; after twice that time each has.
    time.sleep(2 * SAMPLE_SECONDS)
    connection = http.client.HTTPConnection("127.0.0.1", victim.metrics_port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    [found] = [line for line in lines if line.startswith("invites_api_argon2_checks_total ")]
    return int(float(found.split()[1]))


class MemoryWatch:
    """Looks at the memory of each worker again and again; a context manager.

    Attributes:
        before: What each held at the beginning, in MiB, by process.
        peak: The most that each held since then.
        after: What each held at the end.
    """

    def __init__(self, service: Service) -> None:
        self._pids = service.worker_pids()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self._read()
        self.peak = dict(self.before)
        self.after: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self.after = self._read()

    @property
    def grown(self) -> float:
        """By how much the worker grew most that grew most, in MiB."""
        return max(self.peak[pid] - self.before[pid] for pid in self._pids)

    def _read(self) -> dict[int, float]:
        return {pid: read_rss_mib(pid) for pid in self._pids}

    def _watch(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            for pid, rss in self._read().items():
                self.peak[pid] = max(self.peak[pid], rss)
