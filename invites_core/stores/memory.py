"""The reference store: everything in memory, under one lock; gone when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from invites_core.errors import InviteExists, KeyExists, KeyUnknown
from invites_core.invites import Invite, InviteState, Redemption
from invites_core.keys import ApiKey, PreviousSecret
from invites_core.store import (
    COUNTED_USES,
    HISTORY,
    LARGE_LISTS,
    Grant,
    GrantTaken,
    InvitePage,
    RedeemResult,
    Sweep,
)
from invites_core.stores.cursors import parse_position

__all__ = ["MemoryStore"]


class _Creation:
    """An idempotency row."""

    __slots__ = ("created_at", "done", "fingerprint", "tokens")

    def __init__(self, grant: Grant) -> None:
        self.fingerprint = grant.fingerprint
        self.tokens = grant.tokens
        self.created_at = grant.now
        self.done = False


class MemoryStore:
    """Keys and invites of one process. It promises no durability, and a forked child has its own copy."""

    features = frozenset({COUNTED_USES, HISTORY, LARGE_LISTS})
    location = "memory"

    def __init__(self) -> None:
        """Make an empty store."""
        self._lock = threading.Lock()
        self._keys: dict[str, ApiKey] = {}
        self._deleted_keys: dict[str, datetime] = {}
        self._quotas: dict[str, tuple[datetime, int]] = {}
        self._creations: dict[tuple[str, bytes], _Creation] = {}
        self._invites: dict[str, Invite] = {}
        # Python's dicts keep the order of insertion, so an invite's position is where it stands here.
        self._positions: dict[int, str] = {}
        self._next_position = 1
        self._redemptions: dict[str, dict[str, Redemption]] = {}

    def ping(self) -> None:
        """Do nothing: memory answers."""

    def find_problems(self) -> Sequence[str]:
        """Return nothing: memory has no problems that could be looked for."""
        return ()

    def close(self) -> None:
        """Do nothing: there is nothing open."""

    def add_key(self, key: ApiKey) -> None:  # noqa: D102 (the protocol says it, as for all that follow)
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

    def update_key(self, old: ApiKey, new: ApiKey) -> bool:  # noqa: D102
        with self._lock:
            key = self._keys.get(old.id)
            if key is None or (key.name, key.policy, key.expires_at) != (old.name, old.policy, old.expires_at):
                return False
            self._keys[old.id] = replace(key, name=new.name, policy=new.policy, expires_at=new.expires_at)
            return True

    def rotate_key(  # noqa: D102
        self, key_id: str, *, host: str, secret_hash: str, tag: bytes, previous_until: datetime | None
    ) -> ApiKey | None:
        with self._lock:
            key = self._keys.get(key_id)
            if key is None or key.host != host:
                return None
            if key.secret_hash == secret_hash:
                return key
            previous = None
            if previous_until is not None:
                previous = PreviousSecret(secret_hash=key.secret_hash, tag=key.tag, valid_until=previous_until)
            self._keys[key_id] = replace(key, secret_hash=secret_hash, tag=tag, previous=previous)
            return self._keys[key_id]

    def record_key_uses(self, uses: Mapping[str, datetime]) -> None:  # noqa: D102
        with self._lock:
            for key_id, used_at in uses.items():
                key = self._keys.get(key_id)
                if key is not None and (key.last_used_at is None or key.last_used_at < used_at):
                    self._keys[key_id] = replace(key, last_used_at=used_at)

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:  # noqa: D102
        with self._lock:
            key = self._keys.get(key_id)
            if key is None or key.host != host:
                return False
            del self._keys[key_id]
            self._deleted_keys[key_id] = now
            self._quotas.pop(key_id, None)
            self._creations = {row: creation for row, creation in self._creations.items() if row[0] != key_id}
            return True

    def find_deletion(self, key_id: str) -> datetime | None:  # noqa: D102
        with self._lock:
            return self._deleted_keys.get(key_id)

    def take_grant(self, grant: Grant) -> GrantTaken:  # noqa: D102
        with self._lock:
            return self._take_grant(grant)

    def _take_grant(self, grant: Grant, invites: Sequence[Invite] = ()) -> GrantTaken:
        """Take a grant, unless one of the invites that are to be added for it is there already."""
        if grant.key_id not in self._keys:
            raise KeyUnknown
        if grant.digest is not None:
            creation = self._creations.get((grant.key_id, grant.digest))
            if creation is not None and creation.created_at >= grant.expired_before:
                same = creation.fingerprint == grant.fingerprint
                return GrantTaken(
                    outcome="repeated" if same else "conflict",
                    tokens=creation.tokens,
                    created_at=creation.created_at,
                    done=creation.done,
                )
        if grant.window is not None:
            start, taken = self._quotas.get(grant.key_id, (grant.window.start, 0))
            if start < grant.window.start:
                start, taken = grant.window.start, 0
            if taken + len(grant.tokens) > grant.window.limit:
                return GrantTaken(outcome="spent", created_at=grant.now)
            self._check_absent(invites)
            self._quotas[grant.key_id] = (start, taken + len(grant.tokens))
        self._check_absent(invites)
        if grant.digest is not None:
            self._creations[grant.key_id, grant.digest] = _Creation(grant)
        return GrantTaken(outcome="taken", tokens=grant.tokens, created_at=grant.now)

    def finish_grant(self, grant: Grant) -> None:  # noqa: D102
        with self._lock:
            self._finish_grant(grant)

    def _finish_grant(self, grant: Grant) -> None:
        creation = self._creations.get((grant.key_id, grant.digest or b""))
        if creation is not None:
            creation.done = True

    def find_quota_taken(self, key_id: str, window_start: datetime) -> int:  # noqa: D102
        with self._lock:
            start, taken = self._quotas.get(key_id, (window_start, 0))
        return taken if start >= window_start else 0

    def purge_grants(self, *, before: datetime) -> int:  # noqa: D102
        with self._lock:
            kept = {row: creation for row, creation in self._creations.items() if creation.created_at >= before}
            removed = len(self._creations) - len(kept)
            self._creations = kept
            return removed

    def add_granted(self, grant: Grant, invites: Sequence[Invite]) -> GrantTaken:  # noqa: D102
        with self._lock:
            taken = self._take_grant(grant, invites)
            if taken.outcome == "taken":
                self._add(invites)
                self._finish_grant(grant)
            return taken

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:  # noqa: D102
        with self._lock:
            if if_absent:
                invites = [invite for invite in invites if invite.token not in self._invites]
            self._check_absent(invites)
            self._add(invites)

    def _check_absent(self, invites: Sequence[Invite]) -> None:
        tokens = {invite.token for invite in invites}
        if len(tokens) < len(invites) or not tokens.isdisjoint(self._invites):
            raise InviteExists

    def _add(self, invites: Sequence[Invite]) -> None:
        for invite in invites:
            self._invites[invite.token] = replace(invite, landing_page="")
            self._positions[self._next_position] = invite.token
            self._next_position += 1

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102
        with self._lock:
            return self._invites.get(token)

    def list_invites(  # noqa: D102
        self,
        host: str,
        *,
        now: datetime,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> InvitePage:
        before = None if cursor is None else parse_position(cursor)
        found: list[tuple[int, Invite]] = []
        with self._lock:
            for position, token in reversed(self._positions.items()):
                invite = self._invites[token]
                if (
                    (before is None or position < before)
                    and invite.host == host
                    and source in (None, invite.source)
                    and state in (None, invite.state_at(now))
                ):
                    found.append((position, invite))
                    if len(found) > limit:
                        break
        page = found[:limit]
        return InvitePage(
            invites=tuple(invite for _, invite in page), next=str(page[-1][0]) if len(found) > limit else None
        )

    def redeem_invite(  # noqa: D102
        self,
        token: str,
        *,
        redemption_id: str,
        redeemer: str | None,
        username: str | None,
        host: str | None,
        now: datetime,
    ) -> RedeemResult:
        with self._lock:
            invite = self._find_of_host(token, host)
            if invite is None:
                return RedeemResult(outcome="refused", invite=None)
            redemptions = self._redemptions.setdefault(token, {})
            known = redemptions.get(redemption_id)
            if known is not None:
                if known.released_at is not None:
                    return RedeemResult(outcome="released", invite=invite)
                return RedeemResult(outcome="repeated" if known.redeemer == redeemer else "conflict", invite=invite)
            if invite.state_at(now) != "pending" or not invite.admits(username):
                return RedeemResult(outcome="refused", invite=invite)
            redemptions[redemption_id] = Redemption(
                token=token, redemption_id=redemption_id, redeemer=redeemer, redeemed_at=now
            )
            invite = replace(invite, uses=invite.uses + 1)
            if invite.uses == invite.max_uses:
                invite = replace(invite, closed_at=now)
            self._invites[token] = invite
            return RedeemResult(outcome="redeemed", invite=invite)

    def release_redemption(  # noqa: D102
        self, token: str, *, redemption_id: str, host: str | None, now: datetime
    ) -> Invite | None:
        with self._lock:
            invite = self._find_of_host(token, host)
            if invite is None:
                return None
            redemptions = self._redemptions.setdefault(token, {})
            known = redemptions.get(redemption_id)
            if known is None:
                redemptions[redemption_id] = Redemption(
                    token=token, redemption_id=redemption_id, redeemer=None, redeemed_at=None, released_at=now
                )
            elif known.released_at is None:
                redemptions[redemption_id] = replace(known, released_at=now)
                closed_at = invite.closed_at if invite.revoked_by is not None else None
                self._invites[token] = invite = replace(invite, uses=invite.uses - 1, closed_at=closed_at)
            return invite

    def list_redemptions(self, token: str) -> Sequence[Redemption]:  # noqa: D102
        with self._lock:
            found = list(self._redemptions.get(token, {}).values())
        return sorted(found, key=lambda one: (one.happened_at, one.redemption_id))

    def revoke_invite(  # noqa: D102
        self, token: str, *, by: str, host: str | None, now: datetime
    ) -> tuple[bool, Invite | None]:
        with self._lock:
            invite = self._find_of_host(token, host)
            if invite is None or invite.state_at(now) != "pending":
                return False, invite
            self._invites[token] = invite = replace(invite, closed_at=now, revoked_by=by)
            return True, invite

    def revoke_invites_from(  # noqa: D102
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        after = 0 if cursor is None else parse_position(cursor)
        changed = marked = 0
        with self._lock:
            for position, token in self._positions.items():
                invite = self._invites[token]
                state = invite.state_at(now)
                if (
                    position > after
                    and (invite.source, invite.host, invite.revoked_by) == (source, host, None)
                    and state in ("pending", "used")
                ):
                    if marked == limit:
                        return Sweep(changed=changed, next=str(after))
                    # A used one would be pending again if its use were given back.
                    closed_at = now if state == "pending" else invite.closed_at
                    self._invites[token] = replace(invite, closed_at=closed_at, revoked_by=by)
                    changed, marked, after = changed + (state == "pending"), marked + 1, position
        return Sweep(changed=changed, next=None)

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:  # noqa: D102
        after = 0 if cursor is None else parse_position(cursor)
        with self._lock:
            step = [(position, token) for position, token in self._positions.items() if position > after][:limit]
            changed = 0
            for position, token in step:
                invite = self._invites[token]
                over_at = invite.closed_at or invite.expires_at
                if over_at is not None and over_at < before:
                    del self._invites[token], self._positions[position]
                    self._redemptions.pop(token, None)
                    changed += 1
        return Sweep(changed=changed, next=str(step[-1][0]) if len(step) == limit else None)

    def _find_of_host(self, token: str, host: str | None) -> Invite | None:
        invite = self._invites.get(token)
        return invite if invite is not None and host in (None, invite.host) else None
