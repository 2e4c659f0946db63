"""What warm workers hold over many requests: memory, descriptors and threads, and how large the WAL is."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.load import Load, LoadError, Result, run_load
from tests.bench.machine import count_open_files
from tests.bench.peers import Service, Settings, new_sqlite, run_invites_api
from tests.bench.processes import count_connections, count_threads, read_rss_mib

__all__ = ["Sample", "format_samples", "watch_memory"]

_CHUNK_SECONDS: Final = 5
_CLOSING_SECONDS: Final = 10.0
_INVITES: Final = 1_000
_POLICY: Final = ("--scope", "create,read,redeem")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the workers held after some requests, while none was under way.

    Attributes:
        requests: How many were answered until then, by all workers.
        pids: The workers.
        rss_mib: The memory of each, in MiB.
        open_files: The descriptors of each.
        threads: The threads of each.
        wal_mib: The size of the database's WAL, in MiB.
        unexpected: All that was not the expected answer until then, by name and number.
    """

    requests: int
    pids: list[int]
    rss_mib: list[float]
    open_files: list[int]
    threads: list[int]
    wal_mib: float
    unexpected: Mapping[str, int]


def watch_memory(
    requests: int,
    settings: Settings,
    folder: Path,
    say: Callable[[str], None],
    *,
    points: int = 10,
    chunk_seconds: int = _CHUNK_SECONDS,
) -> list[Sample]:
    """Serve creations, refusals, reads and redemptions in turn, and look at the workers on the way.

    Args:
        requests: How many requests are to be answered at least, after a warm-up that does not count.
        settings: How many workers, threads and connections.
        folder: Where the data goes.
        say: Is told what is going on.
        points: How often it looks, evenly over the requests, if each turn is shorter than that.
        chunk_seconds: How long each kind of request has its turn.

    Returns:
        What was seen, the last after all requests.

    Raises:
        LoadError: wrk failed, or the invites to read and to redeem could not be made.
        ServerFailed: The service did not start.
    """
    (place := folder / "memory").mkdir()
    run = partial(run_invites_api, new_sqlite, 1, policy=_POLICY)
    samples: list[Sample] = []
    unexpected: Counter[str] = Counter()
    answered, step = 0, max(1, requests // points)
    with run(place, settings) as service:

        def ask(load: Load, seconds: int) -> Result:
            return run_load(service.urls, load, seconds=seconds, connections=settings.connections)

        warmup = ask(service.loads[0], settings.warmup_seconds)
        if warmup.unexpected:
            say(f"memory: while warming up: {dict(warmup.unexpected)}")
        while answered < requests:
            for load in (*service.loads, *_make_more_loads(service)):
                result = ask(load, chunk_seconds)
                answered += result.answers + sum(result.unexpected.values())
                unexpected.update({f"{load.name}: {name}": count for name, count in result.unexpected.items()})
            if not samples or answered >= samples[-1].requests + step or answered >= requests:
                samples.append(_take_sample(service, place / "invites.db-wal", answered, dict(unexpected)))
                say(f"memory: {answered:,} requests, {samples[-1].rss_mib} MiB")
    return samples


def _make_more_loads(service: Service) -> Iterator[Load]:
    """Make invites, and the loads that read each of them and redeem it; a repeat of a redemption is answered alike."""
    create = service.loads[0].target
    path, _, key = create.partition("?key=")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps({"count": _INVITES}).encode()
    request = urllib.request.Request(service.urls[0] + path, body, {**headers, "Host": "example.com"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            tokens = [invite["token"] for invite in json.load(answer)["invites"]]
    except urllib.error.URLError as error:
        raise LoadError(f"no invites to read and to redeem: {error}") from None
    reads = tuple(f"{path}/invites/{token}" for token in tokens)
    yield Load("read", reads[0], 200, reads, headers=headers)
    redeems = tuple(f"{one}/redeem" for one in reads)
    once = json.dumps({"redemption_id": "once"})
    yield Load("redeem", redeems[0], 200, redeems, method="POST", headers=headers, body=once)


def _take_sample(service: Service, wal: Path, answered: int, unexpected: dict[str, int]) -> Sample:
    # What the load had open is closed by the workers when they see that it has gone. If they never do, it counts.
    deadline = time.monotonic() + _CLOSING_SECONDS
    while any(count_connections(server.port) for server in service.servers) and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = service.worker_pids()
    return Sample(
        answered,
        pids,
        [round(read_rss_mib(pid), 1) for pid in pids],
        [count_open_files(pid) for pid in pids],
        [count_threads(pid) for pid in pids],
        round(wal.stat().st_size / 2**20, 1) if wal.exists() else 0.0,
        unexpected,
    )


def format_samples(samples: list[Sample]) -> list[tuple[str, ...]]:
    """Return the rows of a table, the headings first."""
    table: list[tuple[str, ...]] = [("requests", "RSS MiB", "descriptors", "threads", "WAL MiB", "wrong")]
    for one in samples:
        each = (" ".join(map(str, values)) for values in (one.rss_mib, one.open_files, one.threads))
        table.append((f"{one.requests:,}", *each, str(one.wal_mib), str(sum(one.unexpected.values()))))
    return table
