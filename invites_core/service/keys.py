"""The rules on keys."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from invites_core.clock import Clock, read_clock, system_clock
from invites_core.durations import MAX_DURATION
from invites_core.errors import (
    Busy,
    InvalidKey,
    InvalidRequest,
    KeyExists,
    KeyUnknown,
    OutcomeUnknown,
    ScopeMissing,
    StorageError,
)
from invites_core.events import EventHook, send_event, tell_refusal
from invites_core.hashing import SecretHasher, compute_tag
from invites_core.hosts import Hosts, normalize_host
from invites_core.keys import (
    DEFAULT_POLICY,
    ApiKey,
    IssuedKey,
    KeyPolicy,
    generate_key_id,
    generate_secret,
    is_key_id,
    parse_key,
)
from invites_core.service.creation import check_policy_fields
from invites_core.service.usage import UsageRecorder
from invites_core.store import KeyStore
from invites_core.text import check_text

__all__ = ["DEFAULT_GRACE", "ApiKeys"]

MAX_NAME_LENGTH: Final = 255
DEFAULT_GRACE: Final = timedelta(hours=24)


class ApiKeys:
    """The API keys of a store. Safe to share among threads; from async code, call it in a thread."""

    def __init__(
        self,
        key_store: KeyStore,
        *,
        hasher: SecretHasher | None = None,
        hosts: Hosts | None = None,
        clock: Clock = system_clock,
        on_event: EventHook | None = None,
    ) -> None:
        """Work on a store.

        Args:
            key_store: Where the keys are.
            hasher: How secrets are hashed and checked; the default fits a process of 8 threads.
            hosts: The hosts that are served; the default serves every valid one.
            clock: Where the time comes from.
            on_event: Called with each `Event` after it has happened; None: nobody is told.
        """
        self._store = key_store
        self._hasher = hasher or SecretHasher()
        self._hosts = hosts or Hosts()
        self._clock = clock
        self._on_event = on_event
        self._usage = UsageRecorder(key_store)

    def create(
        self,
        host: str,
        *,
        name: str | None = None,
        policy: KeyPolicy = DEFAULT_POLICY,
        expires_in: timedelta | None = None,
    ) -> IssuedKey:
        """Make a key.

        Args:
            host: The host whose invites it may make, in any spelling.
            name: What to call it, at most 255 characters; None or "" for no name.
            policy: What it may make.
            expires_in: How long it is valid, at least a second; None: for ever.

        Returns:
            The key with its secret, which is returned only here and cannot be had again.

        Raises:
            InvalidHost: Not a host name, or not a host that is served.
            InvalidRequest: The name, the policy or the time is out of range.
            StorageError: It could not be stored.
        """
        host = self._hosts.normalize_served(host)
        name = check_text("name", name, max_length=MAX_NAME_LENGTH) or None
        check_policy_fields(policy)
        now = read_clock(self._clock)
        expires_at = None if expires_in is None else now + _check_lifetime("expires_in", expires_in)
        while True:
            key_id, secret = generate_key_id(), generate_secret()
            key = ApiKey(
                id=key_id,
                host=host,
                name=name,
                secret_hash=self._hasher.hash(secret),
                tag=compute_tag(key_id, secret),
                policy=policy,
                created_at=now,
                expires_at=expires_at,
            )
            try:
                self._store.add_key(key)
            except KeyExists:
                continue
            send_event(self._on_event, "key.created", now, key_id=key_id, host=host)
            return IssuedKey(key, secret)

    def verify(self, combined: str) -> ApiKey:
        """Return the key that ``ID/SECRET`` is, cheapest test first.

        Args:
            combined: What was handed out by `create`.

        Raises:
            InvalidKey: Malformed, unknown, expired, wrong, or of a host that is not served; its ``reason`` is for
                the log alone.
            Busy: Too many keys are being checked for the first time; try again.
            CorruptRecord: What is stored of the key cannot be used.
            StorageError: The store did not answer.
        """
        try:
            return self._verify(combined)
        except (InvalidKey, Busy) as error:
            if self._on_event is not None:
                tell_refusal(self._on_event, error, read_clock(self._clock))
            raise

    def check_use(self, key: ApiKey, *, scope: str | None = None, in_header: bool = True) -> None:
        """Check that a key which `verify` has returned may be used so; what it may make is checked when it makes it.

        Args:
            key: The key.
            scope: The scope that the call needs; None: none.
            in_header: Whether it came in a header, and not in a place that others get to see.

        Raises:
            InvalidKey: It is taken in a header only.
            ScopeMissing: It lacks the scope.
        """
        try:
            if key.policy.header_only and not in_header:
                raise InvalidKey("not in the header", key.id)
            if scope is not None:
                key.require_scope(scope)
        except (InvalidKey, ScopeMissing) as error:
            if self._on_event is not None:
                tell_refusal(self._on_event, error, read_clock(self._clock), key_id=key.id, host=key.host)
            raise

    def _verify(self, combined: str) -> ApiKey:
        key_id, secret = parse_key(combined)
        key = self._store.find_key(key_id)
        if key is None:
            raise InvalidKey("unknown", key_id)
        now = read_clock(self._clock)
        if key.expires_at is not None and now > key.expires_at:
            raise InvalidKey("expired", key_id)
        if not self._hosts.serves(key.host):
            raise InvalidKey("host not served", key_id)
        secret_hash = _choose_hash(key, compute_tag(key_id, secret), now)
        if secret_hash is None:
            raise InvalidKey("wrong secret", key_id)
        try:
            self._hasher.verify(secret, secret_hash)
        except (InvalidKey, Busy) as error:
            error.key_id = key_id
            raise
        self._usage.note(key, now)
        return key

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key of this id, or None."""
        return self._store.find_key(key_id) if is_key_id(key_id) else None

    def find_deletion(self, key_id: str) -> datetime | None:
        """Return when the key of this id was deleted, or None."""
        return self._store.find_deletion(key_id) if is_key_id(key_id) else None

    def list(self, host: str | None = None) -> Sequence[ApiKey]:
        """Return all keys, or those of one host, oldest first.

        Raises:
            InvalidHost: Not a host name.
        """
        return self._store.list_keys(None if host is None else normalize_host(host))

    def update(
        self,
        host: str,
        key_id: str,
        *,
        name: str | None = None,
        policy: KeyPolicy | Callable[[KeyPolicy], KeyPolicy] | None = None,
        expires_in: timedelta | None = None,
    ) -> ApiKey:
        """Change what is given, and nothing else; it holds from the next request on.

        Args:
            host: The key's host, in any spelling.
            key_id: The key.
            name: Another name; "" for none; None: as it is.
            policy: Another policy, or what makes it from the one that is there, so that changes of others are kept;
                None: as it is.
            expires_in: How long it is valid from now on; None: as it is; `NEVER`: for ever.

        Raises:
            InvalidHost: Not a host name.
            InvalidRequest: A value is out of range.
            KeyUnknown: This host has no such key.
        """
        host = normalize_host(host)
        check_text("name", name, max_length=MAX_NAME_LENGTH)
        now = read_clock(self._clock)
        while True:
            old = self.find(key_id)
            if old is None or old.host != host:
                raise KeyUnknown
            changed = policy(old.policy) if callable(policy) else policy or old.policy
            if changed != old.policy:
                check_policy_fields(changed)
            new = replace(
                old,
                name=old.name if name is None else name or None,
                policy=changed,
                expires_at=_choose_expiry(old, expires_in, now),
            )
            # Somebody else may have changed it since it was read; then theirs is what this change goes upon.
            if self._store.update_key(old, new):
                if new != old:
                    send_event(self._on_event, "key.updated", now, key_id=key_id, host=host)
                return new

    def rotate(self, host: str, key_id: str, *, grace: timedelta = DEFAULT_GRACE) -> IssuedKey:
        """Give a key another secret; the one it had is taken as well for a while, so that its users can change over.

        A key has two secrets at most: the one before the last is refused at once.

        Args:
            host: The key's host, in any spelling.
            key_id: The key.
            grace: How long the secret that it had is still taken; zero: not at all.

        Returns:
            The key with its new secret, which is returned only here.

        Raises:
            InvalidHost: Not a host name.
            InvalidRequest: The time is out of range.
            KeyUnknown: This host has no such key.
        """
        host = normalize_host(host)
        now = read_clock(self._clock)
        previous_until = now + _check_lifetime("grace", grace) if grace else None
        secret = generate_secret()
        if not is_key_id(key_id):
            raise KeyUnknown
        repeatable = partial(
            self._store.rotate_key,
            key_id,
            host=host,
            secret_hash=self._hasher.hash(secret),
            tag=compute_tag(key_id, secret),
            previous_until=previous_until,
        )
        try:
            key = repeatable()
        except OutcomeUnknown as unknown:
            # With another secret a repeat could drop the one that the key's users have.
            try:
                key = repeatable()
            except StorageError as error:
                raise OutcomeUnknown(str(unknown)) from error
        if key is None:
            raise KeyUnknown
        send_event(self._on_event, "key.rotated", now, key_id=key_id, host=host)
        return IssuedKey(key, secret)

    def delete(self, host: str, key_id: str) -> None:
        """Delete a key: no request that begins after this returns is accepted with it, in any process.

        Raises:
            InvalidHost: Not a host name.
            KeyUnknown: This host has no such key.
        """
        host, now = normalize_host(host), read_clock(self._clock)
        if not is_key_id(key_id) or not self._store.delete_key(key_id, host=host, now=now):
            raise KeyUnknown
        send_event(self._on_event, "key.deleted", now, key_id=key_id, host=host)

    def find_quota_left(self, key: ApiKey) -> tuple[int, datetime] | None:
        """Return how many invites a key may still make in this period and when the next one begins; None: no quota."""
        quota = key.policy.quota
        if quota is None:
            return None
        start, end = quota.find_window(read_clock(self._clock))
        return max(0, quota.count - self._store.find_quota_taken(key.id, start)), end

    def flush_usage(self) -> None:
        """Write down now what is noted of the uses of keys, as it is done by itself every few seconds."""
        self._usage.flush()


def _choose_hash(key: ApiKey, tag: bytes, now: datetime) -> str | None:
    """Return the hash that a secret with this tag may match, or None. Constant time, for the tag is a stored secret."""
    if hmac.compare_digest(tag, key.tag):
        return key.secret_hash
    previous = key.previous
    if previous is not None and now <= previous.valid_until and hmac.compare_digest(tag, previous.tag):
        return previous.secret_hash
    return None


def _choose_expiry(old: ApiKey, expires_in: timedelta | None, now: datetime) -> datetime | None:
    if expires_in is None:
        return old.expires_at
    return None if expires_in == timedelta.max else now + _check_lifetime("expires_in", expires_in)


def _check_lifetime(field: str, lifetime: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= lifetime <= MAX_DURATION:
        raise InvalidRequest(field, "must be from 1 second to 100 years")
    return timedelta(seconds=int(lifetime.total_seconds()))
