"""The contract between the rules and the data: what a store of keys and a store of invites promise, in words.

For every verb of both protocols:

- **Threads.** A store may be called from many threads at once, and from a child after a fork.
- **Atomicity.** A call happens whole or not at all, and as if calls happened one after the other. A verb that
  consumes something says by its result who won: nobody reads, decides and then writes.
- **Durability.** When a call that changes something returns, the change is durable, as far as the store promises
  durability at all (``memory:`` promises none).
- **Repeats.** Every change carries an identity that its caller chose before the first attempt, and repeating the same
  call is safe.
- **Values.** Returned records are values: a later change in the store does not show in them.
- **Names.** ``find_x`` gives None where there is none, ``add_x`` raises on a duplicate.
- **Time.** A store has no clock. Times come in as arguments, aware UTC in whole seconds, and come out the same.
- **Errors.** Whatever the driver raises comes out as `StorageError` (nothing was changed), `StorageBusy` (the same,
  for the time limit), `OutcomeUnknown` (it may or may not be durable: repeat the same call) or `CorruptRecord`.
- **Features.** What a store cannot do raises `Unsupported` before anything happens, and is missing in ``features``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol

from invites_core.invites import Invite, InviteState, Redemption
from invites_core.keys import ApiKey

__all__ = [
    "COUNTED_USES",
    "HISTORY",
    "LARGE_LISTS",
    "Grant",
    "GrantTaken",
    "InvitePage",
    "InviteStore",
    "KeyStore",
    "QuotaWindow",
    "RedeemResult",
    "Store",
    "Sweep",
]

COUNTED_USES: Final = "counted uses"
"""Feature: ``max_uses`` may be more than one and not unlimited."""
HISTORY: Final = "history"
"""Feature: every redemption is kept with its redeemer and its times."""
LARGE_LISTS: Final = "large lists"
"""Feature: lists, purge and sweeps work on any number of invites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaWindow:
    """What a key may take, and has taken, in a fixed window of time.

    Attributes:
        start: When the window begins.
        limit: How many invites the key may make in it.
    """

    start: datetime
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a key's creation of invites takes from the key's side.

    Attributes:
        key_id: The key.
        now: The time of the request.
        tokens: The tokens of the invites to be made, chosen before the first attempt; their number is what it takes.
        window: The quota's present window, or None for a key without quota.
        digest: The SHA-256 digest of the idempotency key, or None where none was given.
        fingerprint: The SHA-256 digest of what was asked for; present where ``digest`` is.
        expired_before: Idempotency rows made before this time no longer count.
    """

    key_id: str
    now: datetime
    tokens: tuple[str, ...] = field(repr=False)
    window: QuotaWindow | None = None
    digest: bytes | None = None
    fingerprint: bytes | None = None
    expired_before: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantTaken:
    """What became of a grant.

    Attributes:
        outcome: ``taken``: now; ``repeated``: by an earlier call with the same digest and fingerprint, and this call
            took nothing; ``conflict``: the digest was used with another fingerprint; ``spent``: the quota has not
            enough left. In the last two nothing was changed.
        tokens: The tokens to use: those of the grant, or of the earlier call.
        created_at: When they were chosen.
        done: Whether the invites were added already.
    """

    outcome: Literal["taken", "repeated", "conflict", "spent"]
    tokens: tuple[str, ...] = field(default=(), repr=False)
    created_at: datetime
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RedeemResult:
    """What became of a redemption.

    Attributes:
        outcome: ``redeemed``: by this call; ``repeated``: by an earlier call with the same identity and redeemer;
            ``conflict``: the identity was used by another redeemer; ``released``: it was given back; ``refused``: the
            invite does not admit it. In all but the first nothing was changed.
        invite: The invite as it is after the call, None where there is none.
    """

    outcome: Literal["redeemed", "repeated", "conflict", "released", "refused"]
    invite: Invite | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitePage:
    """A part of a list.

    Attributes:
        invites: The invites, newest first. There may be fewer than asked for, even none, and still more to come.
        next: What to give as ``cursor`` for the part after this one; None: there is no more. It holds no token.
    """

    invites: tuple[Invite, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One step of a change over many invites.

    Attributes:
        changed: How many were changed in this step.
        next: What to give as ``cursor`` for the next step; None: all are done.
    """

    changed: int
    next: str | None


class BaseStore(Protocol):
    """What every store has."""

    @property
    def features(self) -> frozenset[str]:
        """What the store can do beyond the verbs that all have: `COUNTED_USES`, `HISTORY`, `LARGE_LISTS`."""
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

        A text that begins with ``note: `` is worth knowing and no fault.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def close(self) -> None:
        """Give back what this process holds open; the store is not used after that. Twice is once."""
        ...


class KeyStore(BaseStore, Protocol):
    """Where API keys live, with their quotas, their idempotency rows and the marks of deleted ones."""

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

    def update_key(self, old: ApiKey, new: ApiKey) -> bool:
        """Change the name, policy and expiry of a key from those of ``old`` to those of ``new``.

        Returns:
            Whether this very call changed it: False where the key is gone, or is not as ``old`` says.
        """
        ...

    def rotate_key(
        self, key_id: str, *, host: str, secret_hash: str, tag: bytes, previous_until: datetime | None
    ) -> ApiKey | None:
        """Give a key another secret, and keep the one it had until a time; None: drop it at once.

        The new hash is the identity of the change: a key that has it already is left as it is, so that a repeat does
        not drop the secret that was there before.

        Returns:
            The key as it is now, or None where this host has no such key.
        """
        ...

    def record_key_uses(self, uses: Mapping[str, datetime]) -> None:
        """Set ``last_used_at`` of several keys, where the time is later than the one that is there."""
        ...

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:
        """Delete a key with its quota and idempotency rows, and keep the mark (id, now), so that it never comes back.

        Returns:
            Whether this very call deleted it: False where there is no such key on this host.
        """
        ...

    def find_deletion(self, key_id: str) -> datetime | None:
        """Return when the key of this id was deleted, or None."""
        ...

    def take_grant(self, grant: Grant) -> GrantTaken:
        """Take what a creation takes: the quota's units, all or none, and the idempotency row.

        A digest that is there already decides first: a repeat takes nothing.

        Raises:
            KeyUnknown: There is no such key.
        """
        ...

    def finish_grant(self, grant: Grant) -> None:
        """Mark the grant's idempotency row as done; nothing where there is none."""
        ...

    def find_quota_taken(self, key_id: str, window_start: datetime) -> int:
        """Return how many invites a key has made in the window that begins then."""
        ...

    def purge_grants(self, *, before: datetime) -> int:
        """Delete the idempotency rows made before a time, and return how many there were."""
        ...


class InviteStore(BaseStore, Protocol):
    """Where invites live, with the redemptions of each."""

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:
        """Add invites, all or none. Their ``landing_page`` is not stored.

        Args:
            invites: At least one.
            if_absent: Leave those alone whose token is there already: a creation is being repeated.

        Raises:
            InviteExists: There is an invite of one of these tokens, and ``if_absent`` is false.
        """
        ...

    def find_invite(self, token: str) -> Invite | None:
        """Return the invite of this token, or None."""
        ...

    def list_invites(
        self,
        host: str,
        *,
        now: datetime,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> InvitePage:
        """Return invites of a normalised host, newest first.

        Rows that come or go between two parts make no other row appear twice or be left out. A row that cannot be read
        is `CorruptRecord` in a store that nobody else writes to. In one that others write to as well it is left out,
        and ``find_problems`` counts it: theirs must not hide all others.

        Args:
            host: The host.
            now: The time at which states are told.
            state: Only those in this state; None: all.
            source: Only those of this source; None: all.
            limit: At most so many, at least 1.
            cursor: ``next`` of the part before; None: from the newest.

        Raises:
            InvalidRequest: The cursor is not one of this store's.
        """
        ...

    def redeem_invite(
        self,
        token: str,
        *,
        redemption_id: str,
        redeemer: str | None,
        username: str | None,
        host: str | None,
        now: datetime,
    ) -> RedeemResult:
        """Use an invite once, if it is pending at ``now`` and admits the redeemer.

        The guard on the invite's own row and the uniqueness of (token, redemption_id) decide.

        Args:
            token: The invite's token.
            redemption_id: The identity of this redemption.
            redeemer: Who redeems it, kept as it is; None: not known.
            username: The redeemer as a normalised user name, or None where it is none; an invite of kind ``register``
                or ``reset`` that names an account admits this one only.
            host: Only an invite of this normalised host; None: any.
            now: The time.
        """
        ...

    def release_redemption(self, token: str, *, redemption_id: str, host: str | None, now: datetime) -> Invite | None:
        """Give a use back; twice is once. An identity that is not known is recorded as released.

        Returns:
            The invite as it is now, or None where there is none.
        """
        ...

    def list_redemptions(self, token: str) -> Sequence[Redemption]:
        """Return the redemptions of an invite, oldest first; empty where there are none."""
        ...

    def revoke_invite(self, token: str, *, by: str, host: str | None, now: datetime) -> tuple[bool, Invite | None]:
        """Take an invite back, if it is pending at ``now``.

        Returns:
            Whether this very call revoked it, and the invite as it is now, None where there is none.
        """
        ...

    def revoke_invites_from(
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        """Take back the invites of a source that are pending at ``now``, a step at a time.

        One that is used up at that time is marked as well, and not counted: if its use is given back it is revoked.

        Args:
            source: Whose invites.
            by: Who takes them back.
            host: The normalised host.
            now: The time.
            limit: How many at most in this step.
            cursor: ``next`` of the step before; None: from the beginning.
        """
        ...

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:
        """Delete invites that were closed, or have expired, before a time, with their redemptions, a step at a time.

        Args:
            before: The time.
            limit: How many invites at most are looked at in this step.
            cursor: ``next`` of the step before; None: from the beginning.
        """
        ...


class Store(KeyStore, InviteStore, Protocol):
    """One store for both."""

    def add_granted(self, grant: Grant, invites: Sequence[Invite]) -> GrantTaken:
        """Take a grant and add the invites of its tokens, in one transaction, so that neither is there alone.

        The grant's row is marked as done. Where the outcome is not ``taken``, nothing is added.

        Raises:
            KeyUnknown: There is no such key: no invite of a deleted key appears after the deletion.
            InviteExists: There is an invite of one of these tokens.
        """
        ...
