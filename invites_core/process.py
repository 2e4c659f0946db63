"""State that belongs to one process and is made anew after a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerProcess"]

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that every process makes for itself at first use.

    A child never touches what its parent made: connections carried across a fork corrupt SQLite databases
    (sqlite.org/howtocorrupt.html, 2.7), a lock that another thread held stays locked for ever, a descriptor shares
    its file locks. The parent's value is kept in the child, unused, so that no destructor closes it there.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        """Take what makes the value; it is called once a process, at first use."""
        self._make = make
        self._lock = threading.Lock()
        self._values: list[T] = []
        self._inherited: list[object] = []
        forget = weakref.WeakMethod(self._forget_after_fork)

        def after_in_child() -> None:
            bound = forget()
            if bound is not None:
                bound()

        os.register_at_fork(after_in_child=after_in_child)

    def _forget_after_fork(self) -> None:
        self._inherited.append((self._lock, self._values))
        self._lock = threading.Lock()
        self._values = []

    def get(self) -> T:
        """Return this process's value, making it if need be."""
        # Read once: a list that holds the value never loses it again in this process.
        values = self._values
        if values:
            return values[0]
        with self._lock:
            if not self._values:
                self._values.append(self._make())
            return self._values[0]

    def peek(self) -> T | None:
        """Return this process's value if it was made already."""
        values = self._values
        return values[0] if values else None
