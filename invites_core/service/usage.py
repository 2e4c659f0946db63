"""When keys were last used: noted in memory, written now and then by a thread of its own, never on the hot path."""

from __future__ import annotations

import contextlib
import threading
from datetime import datetime, timedelta
from typing import Final

from invites_core.errors import StorageError
from invites_core.keys import ApiKey
from invites_core.process import PerProcess
from invites_core.store import KeyStore

__all__ = ["UsageRecorder"]

COARSENESS: Final = timedelta(minutes=1)
WRITE_AFTER_SECONDS: Final = 5.0


class _Noted:
    __slots__ = ("lock", "timer", "uses")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.uses: dict[str, datetime] = {}
        self.timer: threading.Timer | None = None


class UsageRecorder:
    """Notes the uses of keys and writes them in batches. What a crash loses is at most some seconds of it."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._noted = PerProcess(_Noted)

    def note(self, key: ApiKey, now: datetime) -> None:
        """Note that a key was used, unless that is known to the minute already."""
        if key.last_used_at is not None and now - key.last_used_at < COARSENESS:
            return
        noted = self._noted.get()
        if key.id in noted.uses:
            return
        with noted.lock:
            noted.uses[key.id] = now
            if noted.timer is None:
                timer = threading.Timer(WRITE_AFTER_SECONDS, self.flush)
                timer.daemon = True
                try:
                    timer.start()
                except RuntimeError:
                    # No thread can be had at the moment; the next use is noted again.
                    del noted.uses[key.id]
                else:
                    noted.timer = timer

    def flush(self) -> None:
        """Write what was noted. A store that cannot take it now loses it: the next use is noted again."""
        noted = self._noted.get()
        with noted.lock:
            uses, noted.uses = noted.uses, {}
            if noted.timer is not None:
                noted.timer.cancel()
                noted.timer = None
        if uses:
            with contextlib.suppress(StorageError):
                self._store.record_key_uses(uses)
