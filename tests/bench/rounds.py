"""The measurements in their order: every peer once in each round, on empty data, the first one another each time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.load import LoadError, Result, run_load
from tests.bench.peers import Peer, Settings
from tests.bench.processes import read_cpu_seconds, read_rss_mib
from tests.servers import ServerFailed

__all__ = ["METHOD", "Outcome", "Series", "measure"]

METHOD = (
    "Each peer is started on empty data for each round, runs alone and is stopped; the order turns by one a round.",
    "A measurement follows {warmup_seconds} s of the same load, which is thrown away, and a sync of all file systems.",
    "What a store holds grows meanwhile (rows: its invites at the end, median).",
    "Where a peer is also asked to refuse, that follows the creations, on the same server and data.",
    "The status of every answer is counted; only right ones make the rate.",
    "The load comes from the same cores: wrk, one thread for each server.",
)


@dataclass(slots=True)
class Series:
    """What was measured for one peer under one load, an entry for each round.

    Attributes:
        peer: The slug of the peer.
        title: Its name for a reader.
        load: The name of the load.
        results: What wrk saw.
        rss_mib: The memory of each worker after the measurement, in MiB.
        cpu: The part of a core that each worker took during it. Workers that differ much shared the connections badly.
        rows: The invites that were created on its data by the end of the measurement, warm-up included.
        warmup_unexpected: What went wrong in the warm-ups, by name and number. Some may: a service that hashes a secret
            when it first sees it may refuse the first of many at once.
    """

    peer: str
    title: str
    load: str
    results: list[Result] = field(default_factory=list)
    rss_mib: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    warmup_unexpected: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The median of the rounds' rates."""
        return median(result.rate for result in self.results)

    def count_unexpected(self) -> dict[str, int]:
        """Add up what went wrong in all measurements, by name; empty where nothing did."""
        total: dict[str, int] = {}
        for result in self.results:
            _add(total, result.unexpected)
        return total


@dataclass(slots=True)
class Outcome:
    """What a run of the bench found: the series that were measured, and the peers that failed, slug -> why."""

    series: list[Series] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def find_series(self, peer: str, load: str) -> Series | None:
        """Find one series, or None if it was not measured."""
        return next((one for one in self.series if (one.peer, one.load) == (peer, load)), None)


def measure(peers: Sequence[Peer], settings: Settings, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Measure the peers side by side.

    A peer that fails is left out from then on and keeps what was measured before; the others go on.

    Args:
        peers: Whom to measure; nothing of what they need is missing.
        settings: How.
        folder: Where their data goes; each measurement's is removed after it.
        say: Is told what is going on, a line at a time.

    Returns:
        What was found. The series are in the order of the peers.
    """
    outcome = Outcome()
    for number in range(settings.rounds):
        turn = number % len(peers)
        for peer in (*peers[turn:], *peers[:turn]):
            if peer.slug in outcome.failed:
                continue
            say(f"round {number + 1} of {settings.rounds}: {peer.title}")
            try:
                _measure_once(peer, settings, folder, outcome)
            except (ServerFailed, LoadError) as error:
                outcome.failed[peer.slug] = str(error)
    slugs = [peer.slug for peer in peers]
    outcome.series.sort(key=lambda series: slugs.index(series.peer))
    return outcome


def _measure_once(peer: Peer, settings: Settings, folder: Path, outcome: Outcome) -> None:
    rows, settings = 0, peer.adjust(settings)
    with tempfile.TemporaryDirectory(dir=folder) as data, peer.run(Path(data), settings) as service:
        for load in service.loads:
            urls, connections = service.urls, settings.connections
            warmup = run_load(urls, load, seconds=settings.warmup_seconds, connections=connections)
            # What others left to be written would otherwise be paid for by the first fsync of this measurement.
            os.sync()
            spent = {pid: read_cpu_seconds(pid) for pid in service.worker_pids()}
            result = run_load(urls, load, seconds=settings.seconds, connections=connections)
            workers = service.worker_pids()
            rows += warmup.answers + result.answers if load.name == "create" else 0
            series = outcome.find_series(peer.slug, load.name)
            if series is None:
                series = Series(peer.slug, peer.title, load.name)
                outcome.series.append(series)
            series.results.append(result)
            series.rss_mib.append([read_rss_mib(pid) for pid in workers])
            series.cpu.append([(read_cpu_seconds(pid) - spent.get(pid, 0.0)) / result.seconds for pid in workers])
            series.rows.append(rows)
            _add(series.warmup_unexpected, warmup.unexpected)


def _add(total: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count
