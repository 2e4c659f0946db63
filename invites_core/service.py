"""ApiKeys and Invites: the only place with rules."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, cast

from invites_core.clock import Clock, read_clock, system_clock
from invites_core.durations import MAX_DURATION
from invites_core.errors import InvalidKey, InvalidRequest, KeyExists, KeyUnknown
from invites_core.hashing import SecretHasher, compute_tag
from invites_core.hosts import Hosts, normalize_host
from invites_core.invites import Invite, format_landing_page, generate_token, is_token
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
from invites_core.store import InviteStore, KeyStore
from invites_core.text import check_text

__all__ = ["ApiKeys", "Invites"]

MAX_NAME_LENGTH: Final = 255


class ApiKeys:
    """The API keys of a store. Safe to share among threads; from async code, call it in a thread."""

    def __init__(
        self,
        key_store: KeyStore,
        *,
        hasher: SecretHasher | None = None,
        hosts: Hosts | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """Work on a store.

        Args:
            key_store: Where the keys are.
            hasher: How secrets are hashed and checked; the default fits a process of 8 threads.
            hosts: The hosts that are served; the default serves every valid one.
            clock: Where the time comes from.
        """
        self._store = key_store
        self._hasher = hasher or SecretHasher()
        self._hosts = hosts or Hosts()
        self._clock = clock

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
            InvalidRequest: The name or the time is out of range.
            StorageError: It could not be stored.
        """
        host = self._hosts.normalize_served(host)
        name = check_text("name", name, max_length=MAX_NAME_LENGTH) or None
        now = read_clock(self._clock)
        expires_at = None if expires_in is None else now + _check_lifetime(expires_in)
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
        key_id, secret = parse_key(combined)
        key = self._store.find_key(key_id)
        if key is None:
            raise InvalidKey("unknown", key_id)
        now = read_clock(self._clock)
        if key.expires_at is not None and now > key.expires_at:
            raise InvalidKey("expired", key_id)
        if not self._hosts.serves(key.host):
            raise InvalidKey("host not served", key_id)
        tag = compute_tag(key_id, secret)
        if hmac.compare_digest(tag, key.tag):
            secret_hash = key.secret_hash
        elif (
            key.previous is not None and now <= key.previous.valid_until and hmac.compare_digest(tag, key.previous.tag)
        ):
            secret_hash = key.previous.secret_hash
        else:
            raise InvalidKey("wrong secret", key_id)
        try:
            self._hasher.verify(secret, secret_hash)
        except InvalidKey as error:
            error.key_id = key_id
            raise
        return key

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key of this id, or None."""
        return self._store.find_key(key_id) if is_key_id(key_id) else None

    def list(self, host: str | None = None) -> Sequence[ApiKey]:
        """Return all keys, or those of one host, oldest first.

        Raises:
            InvalidHost: Not a host name.
        """
        return self._store.list_keys(None if host is None else normalize_host(host))

    def delete(self, host: str, key_id: str) -> None:
        """Delete a key: no request that begins after this returns is accepted with it, in any process.

        Raises:
            InvalidHost: Not a host name.
            KeyUnknown: This host has no such key.
        """
        host = normalize_host(host)
        if not is_key_id(key_id) or not self._store.delete_key(key_id, host=host, now=read_clock(self._clock)):
            raise KeyUnknown


class Invites:
    """The invites of a store. Safe to share among threads; from async code, call it in a thread."""

    def __init__(
        self,
        invite_store: InviteStore,
        *,
        keys: KeyStore | None = None,
        hosts: Hosts | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """Work on a store.

        Args:
            invite_store: Where the invites are.
            keys: Where the keys are that make invites; None: in the same store.
            hosts: The hosts that are served and what they are set to; the default serves every valid one.
            clock: Where the time comes from.
        """
        self._store = invite_store
        self._keys = keys if keys is not None else cast(KeyStore, invite_store)
        self._hosts = hosts or Hosts()
        self._clock = clock

    def create(self, key: ApiKey) -> Invite:
        """Make an invite with a key that `ApiKeys.verify` has returned for this very request.

        Returns:
            The invite, durable, with its ``landing_page``; its source is ``api/token/ID``.

        Raises:
            InvalidKey: The key was deleted meanwhile.
            StorageError: It could not be stored.
        """
        invite = self._make(key.host, source=key.source, now=read_clock(self._clock))
        try:
            self._store.add_invites([invite], key_id=key.id)
        except KeyUnknown as error:
            raise InvalidKey("unknown", key.id) from error
        return invite

    def create_for(self, host: str, *, source: str) -> Invite:
        """Make an invite on the caller's own authority.

        Args:
            host: The host that it is for, in any spelling.
            source: Who makes it, to be kept with it.

        Raises:
            InvalidHost: Not a host name, or not a host that is served.
            StorageError: It could not be stored.
        """
        invite = self._make(self._hosts.normalize_served(host), source=source, now=read_clock(self._clock))
        self._store.add_invites([invite])
        return invite

    def find(self, token: str, *, host: str | None = None) -> Invite | None:
        """Return the invite of this token, in whatever state, or None.

        Args:
            token: The invite's token.
            host: Find only an invite of this host, in any spelling; None: of any host that is served.
        """
        if not is_token(token):
            return None
        invite = self._store.find_invite(token)
        if invite is None or not self._hosts.serves(invite.host):
            return None
        if host is not None and invite.host != normalize_host(host):
            return None
        return self._with_landing_page(invite)

    def _make(self, host: str, *, source: str, now: datetime) -> Invite:
        invite = Invite(
            token=generate_token(),
            host=host,
            created_at=now,
            expires_at=now + self._hosts.get_invite_expiry(host, "register"),
            source=source,
        )
        return self._with_landing_page(invite)

    def _with_landing_page(self, invite: Invite) -> Invite:
        template = self._hosts.get_landing_template(invite.host)
        return replace(invite, landing_page=format_landing_page(template, invite))


def _check_lifetime(lifetime: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= lifetime <= MAX_DURATION:
        raise InvalidRequest("expires_in", "must be from 1 second to 100 years")
    return timedelta(seconds=int(lifetime.total_seconds()))
