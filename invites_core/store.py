"""The contract between the rules and the data: what a store of keys and a store of invites promise, in words.

For every verb of both protocols:

- **Threads.** A store may be called from many threads at once, and from a child after a fork.
- **Atomicity.** A call happens whole or not at all, and as if calls happened one after the other. A verb that
  consumes something says by its result who won: nobody reads, decides and then writes.
- **Durability.** When a call that changes something returns, the change is durable, as far as the store promises
  durability at all (``memory:`` promises none).
- **Values.** Returned records are values: a later change in the store does not show in them.
- **Names.** ``find_x`` gives None where there is none, ``add_x`` raises on a duplicate.
- **Time.** A store has no clock. Times come in as arguments, aware UTC in whole seconds, and come out the same.
- **Errors.** Whatever the driver raises comes out as `StorageError` (nothing was changed), `StorageBusy` (the same,
  for the time limit), `OutcomeUnknown` (it may or may not be durable: repeat the same call) or `CorruptRecord`.
- **Features.** What a store cannot do raises `Unsupported` before anything happens, and is missing in ``features``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from invites_core.invites import Invite
from invites_core.keys import ApiKey

__all__ = ["InviteStore", "KeyStore", "Store"]


class BaseStore(Protocol):
    """What every store has."""

    @property
    def features(self) -> frozenset[str]:
        """What the store can do beyond the verbs that all have."""
        ...

    @property
    def location(self) -> str:
        """Where the data is, for people; never with a password in it."""
        ...

    def ping(self) -> None:
        """Return if the store can be read at this moment.

        Raises:
            StorageError: It cannot.
        """
        ...

    def find_problems(self) -> Sequence[str]:
        """Look the data over, which may take a while, and return what is wrong with it in words; empty for nothing.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def close(self) -> None:
        """Give back what this process holds open; the store is not used after that. Twice is once."""
        ...


class KeyStore(BaseStore, Protocol):
    """Where API keys live."""

    def add_key(self, key: ApiKey) -> None:
        """Add a key.

        Raises:
            KeyExists: A key of this id is there, of whatever host, or was there and was deleted.
        """
        ...

    def find_key(self, key_id: str) -> ApiKey | None:
        """Return the key of this id, or None. A key whose deletion has returned is never found again."""
        ...

    def list_keys(self, host: str | None = None) -> Sequence[ApiKey]:
        """Return all keys, or those of one normalised host, oldest first (and by id within a second)."""
        ...

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:
        """Delete a key and keep the mark (id, now), so that the id is never added again.

        Returns:
            Whether this very call deleted it: False where there is no such key on this host.
        """
        ...


class InviteStore(BaseStore, Protocol):
    """Where invites live."""

    def add_invites(self, invites: Sequence[Invite], *, key_id: str | None = None) -> None:
        """Add invites, all or none.

        Args:
            invites: At least one. Their ``landing_page`` is not stored.
            key_id: The key that makes them, or None. A store that holds keys too adds nothing unless this one is
                there, in the same transaction, so that no invite of a deleted key appears after the deletion.

        Raises:
            InviteExists: There is an invite of one of these tokens.
            KeyUnknown: The store holds keys, and not this one.
        """
        ...

    def find_invite(self, token: str) -> Invite | None:
        """Return the invite of this token, or None."""
        ...


class Store(KeyStore, InviteStore, Protocol):
    """One store for both."""
