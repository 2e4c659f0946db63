"""Callers who behave: a process of their own, with a thread for each, so that nothing else takes their time."""

from __future__ import annotations

import http.client
import multiprocessing
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import median, quantiles
from types import TracebackType
from typing import Final, Self

from tests.bench.peers import HOST

__all__ = ["PAUSE_SECONDS", "Callers", "Heard", "warm_up"]

PAUSE_SECONDS: Final = 0.01
"""What each waits between two requests: theirs alone are far from what the service can do."""
PATIENCE: Final = 60.0
WARMING_CONNECTIONS: Final = 64
"""Each is given to one of the workers at random: with so many, each worker has had one."""


@dataclass(slots=True)
class Heard:
    """What the callers were told in some time.

    Attributes:
        milliseconds: How long each answer took, from the request, or for a connection of its own from connecting.
        others: What came instead of a 201, and how often.
    """

    milliseconds: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def median_ms(self) -> float:
        """The median; 0 where nothing was answered."""
        return median(self.milliseconds or [0.0])

    @property
    def p99_ms(self) -> float:
        """The 99th percentile; the longest where there are few."""
        if len(self.milliseconds) < 100:
            return max(self.milliseconds, default=0.0)
        return quantiles(self.milliseconds, n=100)[98]


class Callers:
    """Creates invites over some connections, from ``listen`` on; a context manager over its process.

    The first caller makes a new connection for each request, the others keep theirs.
    """

    def __init__(self, port: int, key: str, connections: int) -> None:
        """Prepare it.

        Args:
            port: Where the service is on 127.0.0.1.
            key: A key, which the service has accepted already.
            connections: How many call at the same time.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, port, key, connections), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def listen(self, *, at_least: float) -> Heard:
        """Let them call for some time, and return what they were told."""
        self.begin()
        time.sleep(at_least)
        return self.end()

    def begin(self) -> None:
        """Let them call until ``end``."""
        self._pipe.send(None)

    def end(self) -> Heard:
        """Let them finish what they are at, and return what they were told.

        Raises:
            RuntimeError: They did not finish.
        """
        self._pipe.send(None)
        if not self._pipe.poll(2 * PATIENCE):
            raise RuntimeError("the callers did not come to their end")
        heard = self._pipe.recv()
        assert isinstance(heard, Heard)
        return heard


def warm_up(port: int, key: str) -> None:
    """Let every worker have checked a key."""
    heard = Heard()
    for _ in range(WARMING_CONNECTIONS):
        _ask(heard, _connect(port), key)
    if heard.others:
        raise RuntimeError(f"the service does not answer as it should before anybody misbehaves: {dict(heard.others)}")


def _connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)


def _ask(heard: Heard, connection: http.client.HTTPConnection, key: str, *, keeps: bool = False) -> None:
    headers = {"Host": HOST, "Authorization": f"Bearer {key}"}
    started = time.perf_counter()
    try:
        connection.request("GET", "/invites_api", headers=headers if keeps else {**headers, "Connection": "close"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        heard.others[type(error).__name__] += 1
        connection.close()
        return
    finally:
        if not keeps:
            connection.close()
    heard.milliseconds.append((time.perf_counter() - started) * 1000)
    if answer.status != 201:
        heard.others[str(answer.status)] += 1


def _call(heard: Heard, port: int, key: str, ending: threading.Event, *, keeps: bool) -> None:
    kept = _connect(port)
    while not ending.wait(PAUSE_SECONDS):
        _ask(heard, kept if keeps else _connect(port), key, keeps=keeps)
    kept.close()


def _serve(pipe: Connection, port: int, key: str, connections: int) -> None:
    """Call between every two messages."""
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        ending = threading.Event()
        each = [Heard() for _ in range(connections)]
        threads = [
            threading.Thread(target=_call, args=(heard, port, key, ending), kwargs={"keeps": number > 0})
            for number, heard in enumerate(each)
        ]
        for thread in threads:
            thread.start()
        try:
            pipe.recv()
        except EOFError:
            ending.set()
            return
        ending.set()
        together = Heard()
        for thread, heard in zip(threads, each, strict=True):
            thread.join()
            together.milliseconds += heard.milliseconds
            together.others += heard.others
        pipe.send(together)
