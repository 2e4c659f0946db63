"""The figures for a reader, as a table, and for a program, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median

from tests.bench.peers import Settings
from tests.bench.plans import Plan
from tests.bench.rounds import METHOD, Outcome, Series

__all__ = ["align", "format_report", "make_report"]

_HEADINGS = ("peer", "load", "median/s", "min..max", "p50 ms", "p99 ms", "RSS MiB", "CPU %", "rows", "wrong")


def make_report(
    machine: Mapping[str, str | int], settings: Settings, plan: Plan, outcome: Outcome, missing: Mapping[str, str]
) -> dict[str, object]:
    """Put everything that is known of a run into what JSON can hold.

    Args:
        machine: What it ran on.
        settings: How it was made.
        plan: What was to be measured.
        outcome: What was measured.
        missing: The peers that could not be measured, slug -> what to install.

    Returns:
        The report; ``format`` changes with its shape.
    """
    return {
        "format": 1,
        "machine": dict(machine),
        "settings": asdict(settings),
        "method": _describe_method(settings, plan),
        "missing": dict(missing),
        "failed": outcome.failed,
        "series": [_describe_series(series, outcome, plan) for series in outcome.series],
    }


def format_report(
    machine: Mapping[str, str | int], settings: Settings, plan: Plan, outcome: Outcome, missing: Mapping[str, str]
) -> str:
    """Write the same for a reader; the arguments are those of ``make_report``."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items())]
    lines.append(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(settings).items()))
    lines += ["", *_describe_method(settings, plan), ""]
    lines += align([(*_HEADINGS, *plan.measures), *(_row(series, outcome, plan) for series in outcome.series)])
    lines += ["", *plan.legend]
    lines.append("RSS, CPU: of each worker in the last round; wrong: all that was not the expected answer.")
    for series in outcome.series:
        for when, counts in (("", series.count_unexpected()), (" while warming up", series.warmup_unexpected)):
            if counts:
                told = ", ".join(f"{count} x {name}" for name, count in counts.items())
                lines.append(f"{series.title}, {series.load}: not the expected answer{when}: {told}")
    lines += [f"missing: {slug}: {what}" for slug, what in missing.items()]
    lines += [f"FAILED: {slug}: {why}" for slug, why in outcome.failed.items()]
    return "\n".join(lines)


def _describe_method(settings: Settings, plan: Plan) -> list[str]:
    return [sentence.format(**asdict(settings)) for sentence in (*METHOD, *plan.method)]


def _describe_series(series: Series, outcome: Outcome, plan: Plan) -> dict[str, object]:
    return {
        "peer": series.peer,
        "load": series.load,
        "rate": round(series.rate, 1),
        **{f"rate_to_{peer.replace('-', '_')}": _find_ratio(series, peer, outcome) for peer in plan.measures.values()},
        "p50_ms": median(result.p50_ms for result in series.results),
        "p99_ms": median(result.p99_ms for result in series.results),
        "unexpected": series.count_unexpected(),
        "warmup_unexpected": series.warmup_unexpected,
        "rounds": [
            {
                "rate": round(result.rate, 1),
                "answers": result.answers,
                "seconds": result.seconds,
                "p50_ms": result.p50_ms,
                "p99_ms": result.p99_ms,
                "rss_mib": [round(size, 1) for size in sizes],
                "cpu": [round(part, 2) for part in parts],
                "rows": rows,
            }
            for result, sizes, parts, rows in zip(series.results, series.rss_mib, series.cpu, series.rows, strict=True)
        ],
    }


def _find_ratio(series: Series, peer: str, outcome: Outcome) -> float | None:
    # The bare app refuses nobody: its only rate is what every load is held against.
    other = outcome.find_series(peer, series.load) or (outcome.find_series(peer, "create") if peer == "bare" else None)
    return round(series.rate / other.rate, 3) if other is not None and other.rate else None


def _row(series: Series, outcome: Outcome, plan: Plan) -> tuple[str, ...]:
    rates = [result.rate for result in series.results]
    ratios = [_find_ratio(series, peer, outcome) for peer in plan.measures.values()]
    return (
        series.title,
        series.load,
        f"{series.rate:.0f}",
        f"{min(rates):.0f}..{max(rates):.0f}",
        f"{median(result.p50_ms for result in series.results):.1f}",
        f"{median(result.p99_ms for result in series.results):.1f}",
        " ".join(f"{size:.0f}" for size in series.rss_mib[-1]),
        " ".join(f"{100 * part:.0f}" for part in series.cpu[-1]),
        f"{median(series.rows):.0f}",
        str(sum(series.count_unexpected().values())),
        *(f"{ratio:.2f}" if ratio is not None else "-" for ratio in ratios),
    )


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows of the same length as a table, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    # Names to the left, figures to the right.
    return [
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
