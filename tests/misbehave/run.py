"""One scenario after another, each beside callers who behave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.peers import Settings
from tests.misbehave.callers import Callers, warm_up
from tests.misbehave.clients import Tally
from tests.misbehave.report import Row, find_faults
from tests.misbehave.scenarios import Scenario, Sizes
from tests.misbehave.service import MemoryWatch, Victim, count_checks, serving

__all__ = ["misbehave"]


def misbehave(
    scenarios: Sequence[Scenario], sizes: Sizes, settings: Settings, folder: Path, say: Callable[[str], None]
) -> list[Row]:
    """Serve, misbehave in each way, and return what came of it.

    Args:
        scenarios: The ways.
        sizes: How much of each.
        settings: How many workers and threads the service has, and how many callers behave.
        folder: Where the data goes.
        say: Is told what is going on.

    Raises:
        ServerFailed: The service did not start.
    """
    used = [sizes.cold_keys if one.slug == "cold-keys" else sizes.keys for one in scenarios if one.checks]
    rows = []
    with serving(folder, max(used, default=0), settings, say) as victim:
        checks = _warm_up(victim)
        is_fresh = True
        for scenario in scenarios:
            if scenario.restarts and not is_fresh:
                victim.server.stop()
                victim.server.start()
                checks = _warm_up(victim)
            is_fresh = False
            say(f"{scenario.title} ...")
            with Callers(victim.server.port, victim.warm, settings.connections) as callers:
                row = _run_one(scenario, sizes, victim, callers, checks)
            checks += row.argon2_checks
            rows.append(row)
    return rows


def _warm_up(victim: Victim) -> int:
    """Let the workers know the key of those who behave, and return how many checks that took."""
    warm_up(victim.server.port, victim.warm)
    return count_checks(victim)


def _run_one(scenario: Scenario, sizes: Sizes, victim: Victim, callers: Callers, checks_before: int) -> Row:
    alone = callers.listen(at_least=sizes.seconds)
    workers = victim.service.worker_pids()
    tally = Tally(victim.server.port)
    with MemoryWatch(victim.service) as memory:
        callers.begin()
        asyncio.run(_as_coroutine(scenario, tally, victim, sizes))
        beside = callers.end()
    checks = count_checks(victim) - checks_before
    others = alone.others + beside.others
    faults = find_faults(
        tally.answers,
        allowed=scenario.allowed,
        must=scenario.must,
        untold=tally.untold,
        others=others,
        grown_mib=memory.grown,
        checks=None if scenario.checks else checks,
        is_running=victim.service.worker_pids() == workers,
    )
    before, peak, after = (sum(found.values()) for found in (memory.before, memory.peak, memory.after))
    return Row(
        slug=scenario.slug,
        title=scenario.title,
        answers=tally.answers,
        untold=tally.untold,
        waited=tally.waited,
        alone_ms=(alone.median_ms, alone.p99_ms),
        beside_ms=(beside.median_ms, beside.p99_ms),
        heard=len(beside.milliseconds),
        others=others,
        rss_mib=(before, peak, after),
        grown_mib=memory.grown,
        argon2_checks=checks,
        faults=faults,
    )


async def _as_coroutine(scenario: Scenario, tally: Tally, victim: Victim, sizes: Sizes) -> None:
    await scenario.misbehave(tally, victim, sizes)
