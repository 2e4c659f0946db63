"""The rules on making invites: within a key's policy and quota, once for each identity of a request."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Unpack, cast

from invites_core.clock import read_clock
from invites_core.errors import (
    IdempotencyConflict,
    InvalidKey,
    InviteExists,
    KeyUnknown,
    PolicyRefused,
    QuotaSpent,
    ScopeMissing,
    StorageError,
    Unsupported,
)
from invites_core.events import send_event, tell_refusal
from invites_core.invites import Invite, generate_token
from invites_core.keys import ApiKey
from invites_core.service.base import InvitesBase, check_actor
from invites_core.service.creation import (
    InviteFields,
    InviteRequest,
    check_idempotency_key,
    check_policy,
    check_request,
    compute_fingerprint,
)
from invites_core.store import COUNTED_USES, Grant, GrantTaken, QuotaWindow, Store

__all__ = ["IDEMPOTENCY_AGE", "InviteMaking"]

ATTEMPTS: Final = 3
NOT_NEW: Final = "the store says again and again that it has a random token already"
IDEMPOTENCY_AGE: Final = timedelta(days=7)


class InviteMaking(InvitesBase):
    """The part of `Invites` that makes them."""

    def create(self, key: ApiKey, *, idempotency_key: str | None = None, **fields: Unpack[InviteFields]) -> Invite:
        """Make an invite with a key that `ApiKeys.verify` has returned for this very request.

        Args:
            key: The key; its policy decides what may be asked for.
            idempotency_key: The request's identity, 1 to 255 printable ASCII characters: repeating it within 7 days
                gives the same invite and makes no other; needed to repeat safely after `OutcomeUnknown`.
            fields: What to make; see `InviteRequest`.

        Returns:
            The invite, durable, with its ``landing_page``; its source is ``api/token/ID``.

        Raises:
            ScopeMissing: The key lacks the scope ``create``.
            InvalidRequest: A field is not valid.
            PolicyRefused: A field is beyond the key's policy.
            QuotaSpent: The key has made all that it may in this period.
            IdempotencyConflict: The idempotency key was used for another request.
            InvalidKey: The key was deleted meanwhile.
            Unsupported: The store cannot hold such an invite.
            StorageError: It could not be stored.
        """
        return self.create_many(key, 1, idempotency_key=idempotency_key, **fields)[0]

    def create_many(
        self, key: ApiKey, count: int, *, idempotency_key: str | None = None, **fields: Unpack[InviteFields]
    ) -> list[Invite]:
        """Make several invites alike, all or none, in one commit.

        Args:
            key: The key, as for `create`.
            count: How many, from 1 to 1,000.
            idempotency_key: As for `create`.
            fields: As for `create`.

        Raises:
            InvitesError: As `create` does.
        """
        try:
            return self._create(key, count, idempotency_key, InviteRequest(**fields))
        except (InvalidKey, ScopeMissing, PolicyRefused, QuotaSpent) as error:
            if self._on_event is not None:
                tell_refusal(self._on_event, error, read_clock(self._clock), key_id=key.id, host=key.host)
            raise

    def _create(self, key: ApiKey, count: int, idempotency_key: str | None, asked: InviteRequest) -> list[Invite]:
        key.require_scope("create")
        request = check_request(asked, count=count)
        default_expiry = self._hosts.get_invite_expiry(key.host, request.kind)
        if key.policy.max_expiry is not None:
            # Who names no lifetime gets the longest that is allowed, up to the host's default.
            default_expiry = min(default_expiry, key.policy.max_expiry)
        check_policy(request, key.policy, count=count, default_expiry=default_expiry)
        self._check_features(request)
        digest = None if idempotency_key is None else check_idempotency_key(idempotency_key)
        now = read_clock(self._clock)

        built: dict[tuple[Sequence[str], datetime], list[Invite]] = {}

        def build(tokens: Sequence[str], created_at: datetime) -> list[Invite]:
            # Mostly the same is asked for twice: to be stored, and to be given back.
            if (tokens, created_at) not in built:
                invites = self._build(request, tokens, key.host, key.source, created_at, default_expiry)
                built[tokens, created_at] = invites
            return built[tokens, created_at]

        for _ in range(ATTEMPTS):
            grant = _make_grant(key, request, count, digest, now)
            try:
                taken, added = self._take(grant, build)
            except KeyUnknown as error:
                raise InvalidKey("unknown", key.id) from error
            except InviteExists:
                continue
            self._refuse_not_taken(taken, key, now)
            made = build(taken.tokens, taken.created_at)
            if added:
                self._tell_created(made, now, key_id=key.id)
            return made if taken.outcome == "taken" else [self._as_first_answered(invite) for invite in made]
        raise StorageError(NOT_NEW)

    def create_for(self, host: str, *, source: str, **fields: Unpack[InviteFields]) -> Invite:
        """Make an invite on the caller's own authority.

        Args:
            host: The host that it is for, in any spelling.
            source: Who makes it, to be kept with it; at most 1,023 characters.
            fields: What to make; see `InviteRequest`.

        Raises:
            InvalidHost: Not a host name, or not a host that is served.
            InvalidRequest: A field is not valid.
            Unsupported: The store cannot hold such an invite.
            StorageError: It could not be stored.
        """
        return self.create_many_for(host, 1, source=source, **fields)[0]

    def create_many_for(self, host: str, count: int, *, source: str, **fields: Unpack[InviteFields]) -> list[Invite]:
        """Make several invites alike on the caller's own authority, all or none, in one commit.

        Raises:
            InvitesError: As `create_for` does.
        """
        host = self._hosts.normalize_served(host)
        source = check_actor("source", source)
        request = check_request(InviteRequest(**fields), count=count)
        self._check_features(request)
        default_expiry = self._hosts.get_invite_expiry(host, request.kind)
        now = read_clock(self._clock)
        for _ in range(ATTEMPTS):
            tokens = [generate_token() for _ in range(count)]
            invites = self._build(request, tokens, host, source, now, default_expiry)
            try:
                self._store.add_invites(invites)
            except InviteExists:
                continue
            self._tell_created(invites, now)
            return invites
        raise StorageError(NOT_NEW)

    def _tell_created(self, invites: Sequence[Invite], now: datetime, *, key_id: str | None = None) -> None:
        first = invites[0]
        send_event(
            self._on_event,
            "invite.created",
            now,
            key_id=key_id,
            host=first.host,
            kind=first.kind,
            count=len(invites),
            source=first.source,
        )

    def _take(self, grant: Grant, build: Callable[[Sequence[str], datetime], list[Invite]]) -> tuple[GrantTaken, bool]:
        """Take a grant and add its invites: in one transaction in one store, else the key's side first.

        Returns:
            What became of the grant, and whether this call added invites. A repeat of what was left undone counts as
            adding them: whether an earlier attempt had got that far is not known.
        """
        if self.share_store_with_keys:
            store = cast(Store, self._store)
            taken = store.add_granted(grant, build(grant.tokens, grant.now))
            if taken.outcome == "taken":
                return taken, True
        elif grant.window is None and grant.digest is None:
            self._store.add_invites(build(grant.tokens, grant.now))
            return GrantTaken(outcome="taken", tokens=grant.tokens, created_at=grant.now, done=True), True
        else:
            taken = self._keys.take_grant(grant)
        if taken.outcome not in ("taken", "repeated") or taken.done:
            return taken, False
        self._store.add_invites(build(taken.tokens, taken.created_at), if_absent=True)
        if grant.digest is not None:
            # The invites are there. A row that stays undone does no harm: a repeat adds the same ones if absent.
            with contextlib.suppress(StorageError):
                self._keys.finish_grant(grant)
        return taken, True

    def _refuse_not_taken(self, taken: GrantTaken, key: ApiKey, now: datetime) -> None:
        if taken.outcome == "conflict":
            raise IdempotencyConflict
        if taken.outcome == "spent" and key.policy.quota is not None:
            _, end = key.policy.quota.find_window(now)
            raise QuotaSpent(retry_after=max(1, int((end - now).total_seconds())))

    def _check_features(self, request: InviteRequest) -> None:
        if request.max_uses not in (None, 1) and COUNTED_USES not in self._store.features:
            raise Unsupported("this store holds invites of one use or of unlimited uses only")

    def _as_first_answered(self, made: Invite) -> Invite:
        """Return what the first request was answered, whatever has become of the invite since.

        It is built again from what was asked; only a lifetime that was not asked for may have had another default then.
        """
        stored = self._store.find_invite(made.token)
        return made if stored is None else replace(made, expires_at=stored.expires_at)

    def _build(
        self,
        request: InviteRequest,
        tokens: Sequence[str],
        host: str,
        source: str,
        created_at: datetime,
        default_expiry: timedelta,
    ) -> list[Invite]:
        template = self._hosts.get_landing_template(host)
        return [
            request.build(
                token=token,
                host=host,
                source=source,
                created_at=created_at,
                default_expiry=default_expiry,
                template=template,
            )
            for token in tokens
        ]


def _make_grant(key: ApiKey, request: InviteRequest, count: int, digest: bytes | None, now: datetime) -> Grant:
    """Choose the identity of a creation, before its first attempt."""
    window = None
    if key.policy.quota is not None:
        start, _ = key.policy.quota.find_window(now)
        window = QuotaWindow(start=start, limit=key.policy.quota.count)
    return Grant(
        key_id=key.id,
        now=now,
        tokens=tuple(generate_token() for _ in range(count)),
        window=window,
        digest=digest,
        fingerprint=None if digest is None else compute_fingerprint(request, count=count),
        expired_before=now - IDEMPOTENCY_AGE,
    )
