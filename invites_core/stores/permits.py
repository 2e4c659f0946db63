"""Permits that are waited for in the order in which they were asked for, in threads and in what shares a thread."""

from __future__ import annotations

import threading
from collections import deque

from invites_core.waiting import Signal, get_waiting

__all__ = ["Permits"]


class Permits:
    """A number of permits. One that is given back goes to whoever has waited longest."""

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._left = number
        self._waiting: deque[Signal] = deque()

    def take_at_once(self) -> bool:
        """Take a permit if there is one."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def take(self, *, timeout: float) -> bool:
        """Take a permit, and tell whether there was one within so many seconds."""
        with self._lock:
            if self._left:
                self._left -= 1
                return True
            given = get_waiting().make_signal()
            self._waiting.append(given)
        try:
            return given.acquire(timeout=max(0.0, timeout)) or self._leave(given)
        except BaseException:
            # A signal's handler, in a program that waits here in its main thread.
            if self._leave(given):
                self.give_back()
            raise

    def give_back(self) -> None:
        """Give a permit back."""
        with self._lock:
            given = self._waiting.popleft() if self._waiting else None
            if given is None:
                self._left += 1
        if given is not None:
            given.release()

    def _leave(self, given: Signal) -> bool:
        """Wait no longer, and tell whether the permit came at the last moment."""
        with self._lock:
            if given not in self._waiting:
                return True
            self._waiting.remove(given)
            return False
