"""Who may use an agent's store when: what takes long is done one at a time, so that what is short gets through."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from invites_core.errors import StorageBusy

__all__ = ["WAIT_SECONDS", "Turns", "is_long"]

WAIT_SECONDS: Final = 5.0
"""How long a request waits for its turn: less than its client waits for the answer."""
REST_SECONDS: Final = 0.25
FEW_INVITES: Final = 20
"""So many can be added as if they were one."""

_LONG: Final = frozenset({"find_problems", "list_invites", "list_redemptions", "purge_invites", "revoke_invites_from"})


def is_long(name: str, arguments: Mapping[str, Any]) -> bool:
    """Tell whether a request may hold up the store for longer than one that makes or uses an invite."""
    return name in _LONG or (name == "add_invites" and len(arguments["invites"]) > FEW_INVITES)


class Turns:
    """Lets one thread in at a time, in the order in which they came, and few wait.

    After a turn the next one begins as much later as that one took, up to a quarter of a second. What is served may
    have one thread for everything, as Prosody has: without a rest, those who list in a loop would have all of it.
    """

    def __init__(self, *, most_waiting: int, wait_seconds: float = WAIT_SECONDS) -> None:
        """Begin with nobody.

        Args:
            most_waiting: How many may wait for a turn at most.
            wait_seconds: How long each waits at most.
        """
        self._most_waiting = most_waiting
        self._wait_seconds = wait_seconds
        self._changed = threading.Condition()
        # The first one has the turn, or is about to have it.
        self._queue: deque[object] = deque()
        self._rests_until = float("-inf")

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Have a turn.

        Raises:
            StorageBusy: There was none in time, or too many wait already; nothing was done.
        """
        began_waiting, ticket = time.monotonic(), object()
        with self._changed:
            if len(self._queue) > self._most_waiting:
                raise StorageBusy("too many lists, sweeps and the like are asked for at once")
            self._queue.append(ticket)
        try:
            self._wait_for(ticket, began_waiting + self._wait_seconds)
            began = time.monotonic()
            try:
                yield
            finally:
                ended = time.monotonic()
                self._rests_until = ended + min(ended - began, REST_SECONDS)
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _wait_for(self, ticket: object, deadline: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._queue[0] is ticket, deadline - time.monotonic()):
                raise StorageBusy("lists, sweeps and the like that others asked for take too long")
            while (rest := self._rests_until - time.monotonic()) > 0:
                self._changed.wait(rest)
