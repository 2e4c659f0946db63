"""What a running service does beside its requests: it deletes invites that are long over, where it is told to."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from datetime import timedelta
from typing import Final

from invites_core import Invites, InvitesError
from invites_core.process import PerProcess

__all__ = ["Housekeeping"]

PURGE_EVERY_SECONDS: Final = 3600.0
PAUSE_SECONDS: Final = 0.05

_log = logging.getLogger("invites_wsgi.housekeeping")


class Housekeeping:
    """A thread in every process, made at its first request, so that none is carried across a fork."""

    def __init__(self, invites: Invites, purge_after: timedelta | None) -> None:
        self._invites = invites
        self._purge_after = purge_after
        self._thread = PerProcess(self._start)

    def ensure_running(self) -> None:
        """Start the thread of this process if there is something to do and it does not run yet."""
        if self._purge_after is not None:
            # Where no thread can be had at the moment the next request tries again.
            with contextlib.suppress(RuntimeError):
                self._thread.get()

    def purge(self, purge_after: timedelta, *, pause: float = PAUSE_SECONDS) -> None:
        """Delete once what is over; between its small steps others have their turn."""
        try:
            self._invites.purge(older_than=purge_after, after_step=lambda _: time.sleep(pause))
        except InvitesError as error:
            _log.warning("purging ended early and is tried again later: %s", error)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        purge_after = self._purge_after
        while purge_after is not None:
            # Workers that were started together come at different times.
            time.sleep(PURGE_EVERY_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 (nothing secret depends on it)
            self.purge(purge_after)
