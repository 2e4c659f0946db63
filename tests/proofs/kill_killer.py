"""Sends SIGKILL to processes of the service at random instants, and sees to it that there are others again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.proofs.kill_callers import PATIENCE, Scene
from tests.proofs.kill_keys import KeyMaker
from tests.servers import Server

WORKER: Final = "worker at work"
STARTING: Final = "worker at its start"
GROUP: Final = "whole server"
MAKER: Final = "process with the library"

SHARES: Final = {GROUP: 0.05, STARTING: 0.05, MAKER: 0.2}
"""How many of all kills are of a kind; the others are of workers at work."""

LONGEST_PAUSE: Final = 0.2
"""Seconds from when there is enough to kill until the kill, at most."""

_POLL_SECONDS: Final = 0.01


class Killer:
    """Kills workers, whole servers and processes that use the library.

    Attributes:
        kills: How many of each kind there were.
    """

    def __init__(self, scene: Scene, server: Server, makers: list[KeyMaker], *, workers: int, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self._scene = scene
        self._server = server
        self._makers = makers
        self._workers = workers
        self._random = random.Random(seed)

    def kill(self, kills: int) -> None:
        """Kill so many times, in an order and at instants that nobody chose."""
        plan = [kind for kind, share in SHARES.items() for _ in range(max(1, round(kills * share)))][:kills]
        plan += [WORKER] * (kills - len(plan))
        self._random.shuffle(plan)
        for kind in plan:
            self.wait_until_repaired()
            time.sleep(self._random.uniform(0, LONGEST_PAUSE))
            if kind == GROUP:
                self._kill_server()
            elif kind == MAKER:
                self._kill_maker()
            else:
                self._kill_worker(kind)
            self.kills[kind] += 1
        self.wait_until_repaired()

    def wait_until_repaired(self) -> None:
        """Return when half of the workers have requests to answer and every process with the library is at work."""
        deadline = time.monotonic() + PATIENCE
        while len(self._find_workers(WORKER)) < (self._workers + 1) // 2 or not all(
            maker.is_at_work() for maker in self._makers
        ):
            self._wait(deadline)

    def _kill_worker(self, kind: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._kill_one(kind):
            if kind == STARTING and len(self._find_workers(WORKER)) >= self._workers:
                # One at its start is there only after another has gone, which is not counted. It may have come to work
                # before it was found: then another has to go.
                self._kill_one(WORKER)
            self._wait(deadline)

    def _kill_one(self, kind: str) -> bool:
        """Kill a worker of a kind, and tell whether there was one."""
        found = self._find_workers(kind)
        if not found:
            return False
        try:
            os.kill(self._random.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _kill_server(self) -> None:
        # Nobody asks from here on, lest an answer of nobody's port pass for one; who waits for an answer is cut off.
        self._scene.is_up.clear()
        self._server.kill()
        self._server.start()
        self._scene.is_up.set()

    def _kill_maker(self) -> None:
        maker = self._random.choice(self._makers)
        maker.kill()
        maker.restart()

    def _find_workers(self, kind: str) -> list[int]:
        """Find the workers that have threads for requests, or those that have none yet."""
        found = []
        for pid in self._server.worker_pids():
            with contextlib.suppress(OSError):
                is_at_work = len(os.listdir(Path("/proc", str(pid), "task"))) > 1
                if pid != self._server.pid and is_at_work == (kind == WORKER):
                    found.append(pid)
        return found

    def _wait(self, deadline: float) -> None:
        if self._scene.failure is not None:
            raise RuntimeError("a caller has ended before its time") from self._scene.failure
        if time.monotonic() > deadline:
            raise RuntimeError(f"the service did not recover from a kill\n{self._server.log_tail()}")
        time.sleep(_POLL_SECONDS)
