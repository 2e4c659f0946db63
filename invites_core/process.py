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

    def __init__(self, make: Callable[[], T], *, prepare_fork: Callable[[T], Callable[[], None]] | None = None) -> None:
        """Take what makes the value.

        Args:
            make: Called once a process, at first use.
            prepare_fork: Called with the value before each fork; what it returns is called afterwards, in the parent
                alone. None: nothing needs to be done.
        """
        self._make = make
        self._prepare_fork = prepare_fork
        self._resume: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._values: list[T] = []
        self._inherited: list[object] = []
        os.register_at_fork(
            before=_call_weakly(self._before_fork),
            after_in_parent=_call_weakly(self._after_fork_in_parent),
            after_in_child=_call_weakly(self._forget_after_fork),
        )

    def _before_fork(self) -> None:
        if self._prepare_fork is not None and self._values:
            self._resume = self._prepare_fork(self._values[0])

    def _after_fork_in_parent(self) -> None:
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def _forget_after_fork(self) -> None:
        self._inherited.append((self._lock, self._values, self._resume))
        self._resume = None
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


def _call_weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls a method while its object lives: what is registered at forks is never let go."""
    weak = weakref.WeakMethod(method)

    def call() -> None:
        bound = weak()
        if bound is not None:
            bound()

    return call
