"""The reference store: everything in memory, under one lock; gone when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from invites_core.errors import InviteExists, KeyExists, KeyUnknown
from invites_core.invites import Invite
from invites_core.keys import ApiKey

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keys and invites of one process. It promises no durability, and a forked child has its own copy."""

    features: frozenset[str] = frozenset()
    location = "memory"

    def __init__(self) -> None:
        """Make an empty store."""
        self._lock = threading.Lock()
        self._keys: dict[str, ApiKey] = {}
        self._deleted_keys: dict[str, datetime] = {}
        self._invites: dict[str, Invite] = {}

    def ping(self) -> None:
        """Do nothing: memory answers."""

    def find_problems(self) -> Sequence[str]:
        """Return nothing: memory has no problems that could be looked for."""
        return ()

    def close(self) -> None:
        """Do nothing: there is nothing open."""

    def add_key(self, key: ApiKey) -> None:  # noqa: D102 (the protocol says it)
        with self._lock:
            if key.id in self._keys or key.id in self._deleted_keys:
                raise KeyExists
            self._keys[key.id] = key

    def find_key(self, key_id: str) -> ApiKey | None:  # noqa: D102
        with self._lock:
            return self._keys.get(key_id)

    def list_keys(self, host: str | None = None) -> Sequence[ApiKey]:  # noqa: D102
        with self._lock:
            found = [key for key in self._keys.values() if host is None or key.host == host]
        return sorted(found, key=lambda key: (key.created_at, key.id))

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:  # noqa: D102
        with self._lock:
            key = self._keys.get(key_id)
            if key is None or key.host != host:
                return False
            del self._keys[key_id]
            self._deleted_keys[key_id] = now
            return True

    def add_invites(self, invites: Sequence[Invite], *, key_id: str | None = None) -> None:  # noqa: D102
        with self._lock:
            if key_id is not None and key_id not in self._keys:
                raise KeyUnknown
            tokens = {invite.token for invite in invites}
            if len(tokens) < len(invites) or not tokens.isdisjoint(self._invites):
                raise InviteExists
            for invite in invites:
                self._invites[invite.token] = replace(invite, landing_page="")

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102
        with self._lock:
            return self._invites.get(token)
