"""Clients who misbehave: each is a coroutine over one connection after another, and counts what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.bench.peers import HOST

__all__ = ["Tally", "flood", "hold", "linger", "pour", "run_for", "trickle", "use_once"]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CLOSED: Final = "closed"
"""The service has ended a connection without an answer."""
_BLOCK: Final = b"x" * 8192


@dataclass(slots=True)
class Tally:
    """What clients were told.

    Attributes:
        port: Where the service is on 127.0.0.1.
        answers: How many answers there were, by status, and how many connections were ended without one.
        untold: How many answers with 429 or 503 did not say when to come again.
        waited: How long it took until the last was accepted, in seconds, or None.
    """

    port: int
    answers: Counter[str] = field(default_factory=Counter)
    untold: int = 0
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: float | None
    is_last: bool


@contextlib.asynccontextmanager
async def _connecting(tally: Tally) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", tally.port)
    try:
        yield reader, writer
    finally:
        # What was not sent yet is a body without an end, and nobody waits for it.
        writer.transport.abort()


async def _read(tally: Tally, reader: asyncio.StreamReader) -> _Answer | None:
    """Read one answer and count it; None where the connection was ended instead."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        await reader.readexactly(int(fields.get("content-length", "0")))
    except (OSError, asyncio.IncompleteReadError):
        tally.answers[CLOSED] += 1
        return None
    status = head[0].split(" ")[1]
    tally.answers[status] += 1
    retry_after = fields.get("retry-after", "")
    tally.untold += status in ("429", "503") and not retry_after.isdigit()
    again = float(retry_after) if retry_after.isdigit() else None
    return _Answer(int(status), again, fields.get("connection", "").lower() == "close")


def _make_request(key: str) -> bytes:
    return f"GET /invites_api HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


async def use_once(tally: Tally, keys: Iterator[str], *, pause: float = 1.0) -> None:
    """Create with each key until it was accepted once; a busy service is asked again when it says."""
    for key in keys:
        accepted = False
        while not accepted:
            async with _connecting(tally) as (reader, writer):
                writer.write(_make_request(key))
                answer = await _read(tally, reader)
            accepted = answer is not None and answer.status != 503
            if not accepted:
                await asyncio.sleep(answer.retry_after if answer and answer.retry_after else pause)


async def flood(tally: Tally, make_key: Callable[[], str]) -> None:
    """Ask with one key after another, as fast as there are answers."""
    while True:
        with contextlib.suppress(OSError):
            async with _connecting(tally) as (reader, writer):
                answer = None
                while answer is None or not answer.is_last:
                    writer.write(_make_request(make_key()))
                    answer = await _read(tally, reader)
                    if answer is None:
                        break


async def trickle(tally: Tally, beginning: bytes, *, interval: float = 1.0) -> None:
    """Begin a request, and send a byte of what never ends now and then, until the service has had enough."""
    while True:
        with contextlib.suppress(OSError):
            async with _connecting(tally) as (reader, writer):
                writer.write(beginning)
                answered = asyncio.ensure_future(_read(tally, reader))
                try:
                    while not answered.done():
                        await asyncio.wait([answered], timeout=interval)
                        writer.write(b"x")
                finally:
                    answered.cancel()


async def hold(tally: Tally, beginning: bytes = b"") -> None:
    """Connect, perhaps send some of a request, and wait to see how long the service does."""
    while True:
        with contextlib.suppress(OSError):
            async with _connecting(tally) as (reader, writer):
                writer.write(beginning)
                await _read(tally, reader)


async def linger(tally: Tally, key: str, *, seconds: float = 10.0) -> None:
    """Ask on a connection that ends with the answer, and do not close it."""
    request = _make_request(key).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    while True:
        with contextlib.suppress(OSError):
            async with _connecting(tally) as (reader, writer):
                writer.write(request)
                await _read(tally, reader)
                await asyncio.sleep(seconds)


async def pour(tally: Tally, beginning: bytes, block: bytes = _BLOCK) -> None:
    """Send a body that never ends, as fast as it is taken, until there is an answer."""
    while True:
        with contextlib.suppress(OSError):
            async with _connecting(tally) as (reader, writer):
                writer.write(beginning)
                answered = asyncio.ensure_future(_read(tally, reader))
                try:
                    while not answered.done():
                        writer.write(block)
                        # What is answered before the connection breaks is read all the same.
                        with contextlib.suppress(OSError):
                            await writer.drain()
                        await asyncio.sleep(0)
                        if writer.is_closing():
                            await answered
                finally:
                    answered.cancel()


async def run_for(seconds: float | None, clients: Sequence[object]) -> float:
    """Run coroutines, and end them after some time; None: when they end by themselves.

    Returns:
        How long it took.
    """
    started = time.monotonic()
    tasks = [asyncio.ensure_future(client) for client in clients]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Their connections are closed in the next turn of the loop.
        await asyncio.sleep(0)
    for task in done:
        task.result()
    return time.monotonic() - started
