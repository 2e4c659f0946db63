"""What came of it: a row for each scenario, the verdicts, and the faults."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Final

from invites_core import SecretHasher
from tests.bench.report import align

__all__ = ["SLACK_MIB", "Row", "format_rows"]

SLACK_MIB: Final = 16
"""What a worker may grow by beside what argon2 takes: 8 MiB of unfinished requests, and what many connections need."""
LATENCY_FACTOR: Final = 2.0


def _default(name: str) -> int:
    return int(inspect.signature(SecretHasher.__init__).parameters[name].default)


ALLOWED_MIB: Final = _default("permits") * _default("memory_kib") / 1024 + SLACK_MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A scenario, as it went.

    Attributes:
        slug: Its name.
        title: What was done, with its size.
        answers: What those who misbehaved were told, by status, and how often.
        untold: How many refusals did not say when to come again.
        waited: How long it took until all were accepted, in seconds, or None.
        alone_ms: The median and the 99th percentile of those who behave, just before.
        beside_ms: The same while it went on.
        heard: How many answers that is.
        others: What those who behave were told instead of 201, before and while it went on.
        rss_mib: The memory of all workers together: before, at most, after.
        grown_mib: By how much one worker grew at most.
        argon2_checks: How many computations of argon2 there were.
        faults: What must not be, in words.
    """

    slug: str
    title: str
    answers: Counter[str]
    untold: int
    waited: float | None
    alone_ms: tuple[float, float]
    beside_ms: tuple[float, float]
    heard: int
    others: Counter[str]
    rss_mib: tuple[float, float, float]
    grown_mib: float
    argon2_checks: int
    faults: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """How many times the median before is the median beside it."""
        return self.beside_ms[0] / self.alone_ms[0] if self.alone_ms[0] else 0.0


def find_faults(
    answers: Counter[str],
    *,
    allowed: frozenset[str],
    must: str | None,
    untold: int,
    others: Counter[str],
    grown_mib: float,
    checks: int | None,
    is_running: bool,
) -> tuple[str, ...]:
    """Say in words what must not be.

    Args:
        answers: What those who misbehaved were told.
        allowed: What they may be told.
        must: What somebody must have been told, or None.
        untold: How many refusals did not say when to come again.
        others: What those who behave were told instead of 201.
        grown_mib: By how much one worker grew at most.
        checks: How many computations of argon2 there were where there must be none; None: there may be.
        is_running: Whether the workers are those that were there at the beginning.
    """
    faults = [f"{count} x {what} to those who misbehave" for what, count in answers.items() if what not in allowed]
    if must is not None and not answers[must]:
        faults.append(f"nobody was answered with {must}")
    if untold:
        faults.append(f"{untold} refusals without Retry-After")
    faults += [f"{count} x {what} to those who behave" for what, count in others.items()]
    if grown_mib > ALLOWED_MIB:
        faults.append(f"a worker grew by {grown_mib:.1f} MiB, more than {ALLOWED_MIB:g}")
    if checks:
        faults.append(f"{checks} computations of argon2 for what the tag refuses")
    if not is_running:
        faults.append("a worker has ended")
    return tuple(faults)


def format_rows(rows: list[Row]) -> list[str]:
    """Write the tables and the verdicts, a line each."""
    told: list[tuple[str, ...]] = [("what is done", "is answered with", "until all are in", "argon2")]
    felt: list[tuple[str, ...]] = [
        ("what is done", "median ms", "beside it", "ratio", "p99 ms", "beside it", "answers", "not 201", "RSS MiB")
    ]
    for row in rows:
        answers = ", ".join(f"{count:,} x {what}" for what, count in sorted(row.answers.items())) or "-"
        waited = "-" if row.waited is None else f"{row.waited:.1f} s"
        told.append((row.title, answers, waited, f"{row.argon2_checks:,}"))
        (alone, alone_p99), (beside, beside_p99) = row.alone_ms, row.beside_ms
        times = [f"{value:.2f}" for value in (alone, beside, row.ratio)] + [f"{alone_p99:.1f}", f"{beside_p99:.1f}"]
        rss = " ".join(f"{value:.0f}" for value in row.rss_mib)
        felt.append((row.title, *times, f"{row.heard:,}", str(row.others.total()), rss))
    grown = max((row.grown_mib for row in rows), default=0.0)
    slow = [row.title for row in rows if row.ratio > LATENCY_FACTOR]
    verdict = f"NOT for {', '.join(slow)}" if slow else "yes"
    faults = [f"FAULT: {row.title}: {fault}" for row in rows for fault in row.faults]
    return [
        "Those who misbehave:",
        *align(told),
        "",
        "Those who behave (alone, and beside it), and the memory of all workers (before, at most, after):",
        *align(felt),
        "",
        f"no worker grew by more than {grown:.1f} MiB; allowed are {ALLOWED_MIB:g}: permits times m, and {SLACK_MIB}",
        f"warm median within {LATENCY_FACTOR:g} times that alone: {verdict}",
        *faults,
        "NOT as promised" if faults else "every answer was as promised, and every refusal says when to come again",
    ]
