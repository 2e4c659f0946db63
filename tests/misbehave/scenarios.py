"""What is done to the service, one after another, and what it may answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from invites_core.keys import generate_key_id, generate_secret
from tests.bench.peers import HOST
from tests.misbehave.clients import CLOSED, Tally, flood, hold, linger, pour, run_for, trickle, use_once
from tests.misbehave.service import Victim

__all__ = ["SCENARIOS", "Scenario", "Sizes"]

FLOOD_CONNECTIONS: Final = 32
RESTART_CONNECTIONS: Final = 64

_HEAD: Final = f"POST /invites_api HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it is done.

    Attributes:
        cold_keys: How many keys are used for the first time at once.
        keys: How many keys are used for the first time after a restart.
        slow: How many clients send a byte a second.
        held: How many connections are held open.
        seconds: How long each of the others lasts.
    """

    cold_keys: int
    keys: int
    slow: int
    held: int
    seconds: float


Misbehave = Callable[[Tally, Victim, Sizes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way to misbehave.

    Attributes:
        slug: Its name on the command line and in the JSON.
        title: Its name in the table.
        allowed: What the service may answer; everything else is a fault.
        misbehave: Does it, and counts the answers.
        checks: Whether argon2 has anything to check.
        restarts: Whether the service is started anew before.
        must: An answer that must have been given at least once; None: there may be none in a short time.
    """

    slug: str
    title: str
    allowed: frozenset[str]
    misbehave: Misbehave
    checks: bool = False
    restarts: bool = False
    must: str | None = None


async def _use_cold_keys(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    each = [iter([key]) for key in victim.keys[: sizes.cold_keys]]
    tally.waited = await run_for(None, [use_once(tally, key) for key in each])


async def _use_all_keys(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    keys = iter(victim.keys[: sizes.keys])
    tally.waited = await run_for(None, [use_once(tally, keys) for _ in range(RESTART_CONNECTIONS)])


async def _send_wrong_secrets(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    known = victim.warm.partition("/")[0]
    await run_for(
        sizes.seconds, [flood(tally, lambda: f"{known}/{generate_secret()}") for _ in range(FLOOD_CONNECTIONS)]
    )


async def _send_unknown_ids(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    del victim
    make = lambda: f"{generate_key_id()}/{generate_secret()}"  # noqa: E731 (it is that short)
    await run_for(sizes.seconds, [flood(tally, make) for _ in range(FLOOD_CONNECTIONS)])


async def _send_slow_heads(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    del victim
    await run_for(sizes.seconds, [trickle(tally, b"GET /invites_api HTTP/1.1\r\nX: ") for _ in range(sizes.slow)])


async def _hold_silent(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    del victim
    await run_for(sizes.seconds, [hold(tally) for _ in range(sizes.held)])


async def _leave_open(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    del victim
    key = f"{generate_key_id()}/{generate_secret()}"
    await run_for(sizes.seconds, [linger(tally, key) for _ in range(FLOOD_CONNECTIONS)])


async def _send_slow_bodies(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    beginnings = [
        f'{_HEAD}Authorization: Bearer {victim.warm}\r\n{framing}\r\n\r\n{{"note": "'.encode()
        for framing in ("Content-Length: 60000", "Transfer-Encoding: chunked")
    ]
    # The second begins with a chunk, so that what follows is in it.
    beginnings[1] = beginnings[1].replace(b"\r\n\r\n", b"\r\n\r\nea60\r\n")
    clients = [trickle(tally, beginning) for beginning in beginnings for _ in range(sizes.slow // 4)]
    clients += [hold(tally, beginning) for beginning in beginnings for _ in range(sizes.slow // 4)]
    await run_for(sizes.seconds, clients)


async def _send_endless_bodies(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    head = f"{_HEAD}Authorization: Bearer {victim.warm}\r\n"
    announced = f"{head}Content-Length: 1000000000000\r\n\r\n".encode()
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
    small, large = b"8\r\n12345678\r\n" * 1000, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    pours = itertools.product(range(FLOOD_CONNECTIONS // 8), ((announced, large), (chunked, small), (chunked, large)))
    await run_for(sizes.seconds, [pour(tally, beginning, block) for _, (beginning, block) in pours])


async def _do_nothing(tally: Tally, victim: Victim, sizes: Sizes) -> None:
    del tally, victim
    await asyncio.sleep(sizes.seconds)


SCENARIOS: Final = (
    Scenario("nothing", "nothing", frozenset(), _do_nothing),
    Scenario(
        "cold-keys",
        "cold valid keys at once",
        frozenset({"201", "503"}),
        _use_cold_keys,
        checks=True,
        restarts=True,
        must="201",
    ),
    Scenario("wrong-secrets", "wrong secrets, known id", frozenset({"403"}), _send_wrong_secrets, must="403"),
    Scenario("unknown-ids", "unknown ids", frozenset({"403"}), _send_unknown_ids, must="403"),
    Scenario("slow-heads", "heads of a byte a second", frozenset({"408", "503", CLOSED}), _send_slow_heads),
    Scenario("held", "connections without a byte", frozenset({CLOSED}), _hold_silent),
    Scenario("left-open", "ended connections left open", frozenset({"403", CLOSED}), _leave_open, must="403"),
    Scenario("slow-bodies", "bodies of a byte a second, or none", frozenset({"408", "503", CLOSED}), _send_slow_bodies),
    Scenario(
        "endless-bodies", "bodies without an end", frozenset({"400", "413", CLOSED}), _send_endless_bodies, must="413"
    ),
    Scenario(
        "restart",
        "keys after a restart",
        frozenset({"201", "503"}),
        _use_all_keys,
        checks=True,
        restarts=True,
        must="201",
    ),
)
