"""All that the service is held to, in one run: part after part, and what came of each line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from invites_core import InvitesError
from tests.bench.chart import draw_chart
from tests.bench.machine import describe_machine
from tests.bench.memory import format_samples, watch_memory
from tests.bench.micro import Micro, format_micro, time_library
from tests.bench.peers import Settings
from tests.bench.plans import DEFAULT, Plan
from tests.bench.preparing import find_missing_postgresql, preparing
from tests.bench.report import align, format_report, make_report
from tests.bench.rounds import Outcome, measure
from tests.bench.thousand import make_thousand_plan
from tests.bench.verdicts import Verdict, format_verdicts
from tests.servers import ServerFailed

__all__ = ["find_verdicts", "run_whole"]

REQUESTS: Final = 100_000
PENDING: Final = 1_000_000

Outcomes = dict[str, Outcome]


def run_whole(
    settings: Settings,
    folder: Path,
    say: Callable[[str], None],
    *,
    json_file: Path | None,
    chart_file: Path | None,
    plan: Plan = DEFAULT,
    pending: int = PENDING,
    requests: int = REQUESTS,
) -> int:
    """Measure every part and print it, and at the end what the service is held to.

    Args:
        settings: How each part is measured.
        folder: Where the data goes.
        say: Is told what is going on.
        json_file: Where every figure goes; None: nowhere.
        chart_file: Where the picture goes; None: nowhere.
        plan: What is measured on SQLite.
        pending: How many invites the filled store has.
        requests: After how many requests memory is looked at.

    Returns:
        The exit status: 1 if a part failed or an answer was not the expected one.
    """
    machine = describe_machine(folder)
    outcomes: Outcomes = {}
    report: dict[str, Any] = {"format": 1, "machine": machine, "parts": {}}
    wrong = False

    def run_part(name: str, plan: Plan) -> None:
        nonlocal wrong
        missing = {peer.slug: what for peer in plan.peers if (what := peer.find_missing())}
        peers = [peer for peer in plan.peers if peer.slug not in missing]
        versions = [peer.find_versions() for peer in peers]
        described = {name: value for one in (machine, *versions) for name, value in one.items()}
        (place := folder / name).mkdir()
        outcome = measure(peers, settings, place, say)
        print(f"\n== {name}\n" + format_report(described, settings, plan, outcome, missing), flush=True)
        report["parts"][name] = make_report(described, settings, plan, outcome, missing)
        outcomes[name] = outcome
        wrong = wrong or bool(outcome.failed) or any(series.count_unexpected() for series in outcome.series)

    run_part("sqlite", plan)
    run_part("thousand", make_thousand_plan())
    for name, database, filled in (("pending", "sqlite", pending), ("postgresql", "postgresql", None)):
        if database == "postgresql" and (what := find_missing_postgresql()):
            print(f"\n== {name}\nmissing: {what}")
            continue
        try:
            with preparing(database, sweep=False, pending=filled, folder=folder, say=say) as run:  # type: ignore[arg-type] # both are its names
                run_part(name, run.plan)
        except (InvitesError, ServerFailed) as error:
            say(f"{name}: {error}")
            wrong = True
    library = time_library(None, folder, say)
    print("\n== library\n" + "\n".join(align(format_micro(library))), flush=True)
    samples = watch_memory(requests, settings, folder, say)
    wrong = wrong or any(sample.unexpected for sample in samples[-1:])
    print("\n== memory\n" + "\n".join(align(format_samples(samples))), flush=True)
    verdicts = find_verdicts(outcomes, library, [size for sample in samples[-1:] for size in sample.rss_mib])
    print("\n== what it is held to\n" + "\n".join(align(format_verdicts(verdicts))), flush=True)
    if json_file is not None:
        report |= {"library": [asdict(one) for one in library], "memory": [asdict(one) for one in samples]}
        report["verdicts"] = [{**asdict(one), "holds": one.holds} for one in verdicts]
        json_file.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if chart_file is not None:
        charted = [outcomes[name] for name in ("sqlite", "thousand", "postgresql") if name in outcomes]
        shown = [series for outcome in charted for series in outcome.series]
        chart_file.write_text(draw_chart("Answers a second, every creation synced", shown), "utf-8")
    return int(wrong)


def find_verdicts(outcomes: Outcomes, library: list[Micro], rss_mib: list[float]) -> list[Verdict]:
    """Return what came of each line, from what was measured."""

    def ratio(part: str, ours: str, theirs: str, load: str = "create", other: str = "create") -> float | None:
        outcome = outcomes.get(part)
        one = outcome.find_series(ours, load) if outcome else None
        two = outcome.find_series(theirs, other) if outcome else None
        return one.rate / two.rate if one is not None and two is not None and two.rate else None

    def p99(peer: str) -> float | None:
        series = outcomes["sqlite"].find_series(peer, "create") if "sqlite" in outcomes else None
        return median(result.p99_ms for result in series.results) if series else None

    ours, theirs = p99("invites-api"), p99("prosody-sqlite")
    verify = next((one.median_us for one in library if (one.what, one.store) == ("verify, warm", "sqlite")), None)
    return [
        Verdict("creations, SQLite: times Prosody with SQLite", ratio("sqlite", "invites-api", "prosody-sqlite"), 3, 5),
        Verdict(
            "their 99th percentile: part of Prosody's",
            ours / theirs if ours is not None and theirs else None,
            1,
            None,
            is_most=True,
        ),
        Verdict(
            "a thousand pending: times Prosody's default storage",
            ratio("thousand", "thousand", "prosody-thousand"),
            60,
            100,
        ),
        Verdict("a million pending: part of an empty store's rate", ratio("pending", "filled", "empty"), 0.9, None),
        Verdict(
            "creations: part of a bare app that stores nothing",
            ratio("sqlite", "invites-api", "bare"),
            None,
            0.5,
        ),
        Verdict("refusals: times creations", ratio("sqlite", "invites-api", "invites-api", "refuse"), 1, None),
        Verdict(
            "refusals: times Prosody's", ratio("sqlite", "invites-api", "prosody-sqlite", "refuse", "refuse"), None, 1
        ),
        Verdict("keys.verify, warm, SQLite: microseconds", verify, 25, 10, is_most=True),
        Verdict("memory of a warm worker: MiB", max(rss_mib, default=None), 60, 45, is_most=True),
        Verdict(
            "two nodes on PostgreSQL: times Prosody", ratio("postgresql", "two-nodes", "prosody-postgresql"), 2.2, 4
        ),
    ]
