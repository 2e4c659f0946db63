"""How a call waits for what another thread does.

It holds up its own thread, unless a program that answers many callers in one thread has set another way for it: there
a call that waits lets others go on. Whatever in this library waits for long does it through here, and holds no lock
meanwhile.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["Signal", "Waiting", "get_waiting", "set_waiting"]

T = TypeVar("T")


class Signal(Protocol):
    """What one call waits for and another thread gives, once. A lock that is held from the start is one."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait until it is given, at most for some seconds (-1: for ever), and tell whether it was."""

    def release(self) -> None:
        """Give it; in any thread."""


class Waiting(Protocol):
    """A way to wait."""

    @property
    def shares_thread(self) -> bool:
        """Whether others go on in the thread of a call that waits."""

    def make_signal(self) -> Signal:
        """Return a signal that the call that is made now can wait for."""

    def run(self, work: Callable[[], T]) -> T:
        """Run work that waits for long, and return what it returns; this is the wait.

        Raises:
            RuntimeError: There was no thread to be had for it; it did not begin.
        """

    def wait_for(self, descriptor: int, *, reads: bool, writes: bool, timeout: float) -> bool:
        """Wait until a descriptor can be read or written, as asked, or has failed.

        Args:
            descriptor: What nobody else waits for.
            reads: Whether to wait until it can be read.
            writes: Whether to wait until it can be written.
            timeout: For how many seconds at most.

        Returns:
            Whether it came to that in time.
        """


class _InThread:
    """Holds up the thread: the cheapest thing for it to wait for is a lock."""

    shares_thread = False

    def make_signal(self) -> Signal:
        lock = threading.Lock()
        lock.acquire()
        return lock

    def run(self, work: Callable[[], T]) -> T:
        return work()

    def wait_for(self, descriptor: int, *, reads: bool, writes: bool, timeout: float) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN * reads | select.POLLOUT * writes)
        return bool(poll.poll(max(0.0, timeout) * 1000))


class _Local(threading.local):
    waiting: Waiting = _InThread()


_local = _Local()


def get_waiting() -> Waiting:
    """Return how calls of this thread wait."""
    return _local.waiting


def set_waiting(waiting: Waiting) -> None:
    """Set how calls of this thread wait from now on."""
    _local.waiting = waiting
