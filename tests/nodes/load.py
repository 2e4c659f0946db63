"""Callers of nodes who go on at another node where one gives no answer, and write down what they were told."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.helpers import PATIENCE
from tests.proofs.nodes import Answer, NodeCaller

__all__ = ["Load", "running"]


@dataclass(slots=True)
class Load:
    """What callers were told.

    Attributes:
        made: The invites that were acknowledged, by the Idempotency-Key of their creation.
        used: The redemptions that were acknowledged, by token.
        lost: How many answers were lost.
        unexpected: Answers that should never be.
        is_ending: Set when callers finish what they are at and leave.
    """

    made: dict[str, str] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    unexpected: list[Answer] = field(default_factory=list)
    is_ending: threading.Event = field(default_factory=threading.Event)


class _Caller:
    """One caller, who creates invites and redeems every second one."""

    def __init__(self, load: Load, ports: Sequence[int], combined: str, number: int) -> None:
        self._load = load
        self._number = number
        first = number % len(ports)
        self._ports = itertools.cycle([*ports[first:], *ports[:first]])
        self._combined = combined
        self._caller = NodeCaller(next(self._ports), combined)

    def run(self) -> None:
        for count in itertools.count():
            if self._load.is_ending.is_set():
                self._caller.close()
                return
            self._call(f"{self._number}-{count}", redeems=count % 2 == 0)

    def _call(self, name: str, *, redeems: bool) -> None:
        made = self._send("", {}, {"Idempotency-Key": name})
        if made.status != 201:
            self._load.unexpected.append(made)
            return
        [token] = made.tokens
        self._load.made[name] = token
        if redeems:
            used = self._send(f"/invites/{token}/redeem", {"redemption_id": name}, {})
            if used.status == 200:
                self._load.used[token] = name
            else:
                self._load.unexpected.append(used)

    def _send(self, path: str, body: Mapping[str, object], headers: Mapping[str, str]) -> Answer:
        """Send something that can be repeated, at the next node where there is no answer."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._caller.ask_until_served("POST", path, body, headers)
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                self._load.lost += 1
                self._caller = NodeCaller(next(self._ports), self._combined)


@contextlib.contextmanager
def running(load: Load, ports: Sequence[int], combined: str, *, callers: int) -> Iterator[Load]:
    """Let callers work on nodes meanwhile; at the end all that they have begun was answered."""
    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(_Caller(load, ports, combined, number).run) for number in range(callers)]
        try:
            yield load
        finally:
            load.is_ending.set()
        for future in futures:
            future.result()
