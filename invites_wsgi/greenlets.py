"""Calls that run in greenlets of one thread: what a call waits for lets the next one go on.

A call has the thread for itself until it waits, through `invites_core.waiting`, for what other threads do.
"""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from greenlet import getcurrent, greenlet

from invites_core.waiting import Signal, get_waiting

__all__ = ["Greenlets"]

T = TypeVar("T")

MOST_SECONDS: Final = 0.02
"""How long calls go on one after the other until the loop has its turn again, to begin works and to see to the rest."""
LOOK_SECONDS: Final = 0.01
"""How often those who wait are looked over for who has waited long enough."""
MOST_IDLE: Final = 64
"""How many greenlets are kept for the next calls."""


class _Signal:
    """What one greenlet waits for. Another thread gives it, and the thread of the greenlets then goes on with it."""

    __slots__ = ("_greenlets", "is_given", "waiter")

    def __init__(self, greenlets: Greenlets) -> None:
        self._greenlets = greenlets
        self.is_given = False
        self.waiter: greenlet | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking and not self.is_given:
            self._greenlets.wait(self, timeout)
        return self.is_given

    def release(self) -> None:
        self.is_given = True
        self._greenlets.wake(self)


class _Work:
    """What one of the threads does, and which."""

    __slots__ = ("_run", "thread")

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self.thread = 0

    def __call__(self) -> None:
        self._run()


class Greenlets:
    """The greenlets of one thread, and how calls that are made in one of them wait (`invites_core.waiting.Waiting`).

    The thread makes it, and has a loop, outside of all greenlets. `wake` alone is for every thread.
    """

    shares_thread = True

    def __init__(
        self,
        poller: selectors.BaseSelector,
        call_soon: Callable[[Callable[[], None]], None],
        *,
        threads: int = 1,
    ) -> None:
        """Begin with none.

        Args:
            poller: What the loop waits with. It calls the data of each descriptor that is ready.
            call_soon: Lets the loop call something soon; safe to call in any thread.
            threads: How many works go on at once. What takes long are writes, and those of one database follow one
                another: one for each database.
        """
        self._poller = poller
        self._call_soon = call_soon
        self._loop = getcurrent()
        self._outside = get_waiting()
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="work") for _ in range(threads)]
        # Started at once, so that they are there when they are needed.
        self._thread_ids = frozenset(one.submit(threading.get_ident).result() for one in self._threads)
        self._loads = [0] * threads
        self._idle: list[greenlet] = []
        self._next: tuple[Callable[..., object], tuple[Any, ...]] | None = None
        self._works: list[_Work] = []
        # What is waited for, and the time.monotonic at which that is given up.
        self._timed: dict[_Signal, float] = {}
        self._looked_at = float("-inf")
        # Its ends are atomic.
        self._woken: deque[_Signal] = deque()
        self._is_called = False

    def start(self, call: Callable[..., object], *args: Any) -> None:
        """Make a call in a greenlet, up to where it waits for the first time."""
        # Those whose call is over are used again: a new one takes memory from the system, and gives it back. What it
        # was first switched to with it would keep for its life.
        one = self._idle.pop() if self._idle else greenlet(self._serve)
        self._next = call, args
        one.switch()

    def begin_works(self) -> None:
        """Let the threads begin with the work that calls wait for.

        To be called when all calls have gone as far as they could: writes that are there by then share a commit.
        """
        works, self._works = self._works, []
        for work in works:
            # Mostly the first: what a thread has of a database in memory is of use to it alone.
            work.thread = min(range(len(self._threads)), key=self._loads.__getitem__)
            self._loads[work.thread] += 1
            self._threads[work.thread].submit(work)

    def find_pause(self) -> float | None:
        """Return after how many seconds at the latest `give_up` is to be called; None: nobody has a time limit."""
        if not self._timed:
            return None
        return max(LOOK_SECONDS, min(self._timed.values()) - time.monotonic())

    def end(self) -> None:
        """Begin with no more work."""
        for one in self._threads:
            one.shutdown(wait=False, cancel_futures=True)

    def give_up(self) -> None:
        """Go on with the calls that have waited for as long as they wanted to."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        for signal in [signal for signal, due in self._timed.items() if due <= now]:
            self._resume(signal)

    def make_signal(self) -> Signal:
        """Return a signal that the call that is made now can wait for."""
        return self._outside.make_signal() if getcurrent() is self._loop else _Signal(self)

    def run(self, work: Callable[[], T]) -> T:
        """Run work that waits for long in the other thread, and return what it returns."""
        if getcurrent() is self._loop:
            return self._outside.run(work)
        future: Future[T] = Future()
        done = _Signal(self)

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 (it is raised where the work is waited for)
                future.set_exception(error)
            self._woken.append(done)
            self._call_loop()

        begun = _Work(run)
        self._works.append(begun)
        done.acquire()
        self._loads[begun.thread] -= 1
        return future.result()

    def wait_for(self, descriptor: int, *, reads: bool, writes: bool, timeout: float) -> bool:
        """Let others go on until a descriptor is ready, and tell whether it was in time."""
        if getcurrent() is self._loop:
            return self._outside.wait_for(descriptor, reads=reads, writes=writes, timeout=timeout)
        ready = _Signal(self)
        events = selectors.EVENT_READ * reads | selectors.EVENT_WRITE * writes
        self._poller.register(descriptor, events, lambda _: self._resume_ready(ready))
        try:
            return ready.acquire(timeout=max(0.0, timeout))
        finally:
            self._poller.unregister(descriptor)

    def wait(self, signal: _Signal, timeout: float) -> None:
        """Let others go on until a signal is given, or for some seconds (-1: for ever)."""
        signal.waiter = getcurrent()
        if timeout >= 0:
            self._timed[signal] = time.monotonic() + timeout
        # In vain if it was given by now: then it is among those woken.
        self._loop.switch()

    def wake(self, signal: _Signal) -> None:
        """Go on soon with the call that waits for a signal."""
        self._woken.append(signal)
        # Work wakes many, and all of them at its end: in between the two threads would only be in each other's way.
        if threading.get_ident() not in self._thread_ids:
            self._call_loop()

    def _serve(self) -> None:
        """Make one call after the other, each when it is given; what a call raises is raised in the loop."""
        while self._next is not None:
            (call, args), self._next = self._next, None
            call(*args)
            del call, args
            if len(self._idle) >= MOST_IDLE:
                return
            self._idle.append(getcurrent())
            self._loop.switch()

    def _call_loop(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._call_soon(self._resume_woken)

    def _resume_woken(self) -> None:
        # First: whatever is added from here on is either found below or calls again.
        self._is_called = False
        until = time.monotonic() + MOST_SECONDS
        while self._woken:
            self._resume(self._woken.popleft())
            if time.monotonic() >= until and self._woken:
                self._call_loop()
                return

    def _resume_ready(self, signal: _Signal) -> None:
        signal.is_given = True
        self._resume(signal)

    def _resume(self, signal: _Signal) -> None:
        self._timed.pop(signal, None)
        waiter, signal.waiter = signal.waiter, None
        # None where it did not wait yet, or has given up.
        if waiter is not None:
            waiter.switch()
