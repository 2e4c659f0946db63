"""What tests share that is not a fixture: what is shipped for tests, strategies, an argon2 that can be counted."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import Final

import argon2
import pytest
from hypothesis import strategies as st

from invites_core.hashing import SecretHasher
from invites_core.invites import Invite, generate_token
from invites_core.keys import NEVER, SCOPES, ApiKey, KeyPolicy, PreviousSecret, Quota, generate_key_id
from invites_core.testing import FakeClock, make_grant, make_invite, make_key
from invites_core.testing.base import run_at_once, wait_until
from invites_core.testing.clock import NOON
from invites_core.testing.records import FULL_POLICY, SECOND

__all__ = [
    "FULL_POLICY",
    "NOON",
    "PATIENCE",
    "SECOND",
    "STORE_KINDS",
    "CountedArgon2",
    "FakeClock",
    "count_argon2",
    "durations",
    "invites_of_any_kind",
    "key_ids",
    "keys_of_any_kind",
    "make_grant",
    "make_invite",
    "make_key",
    "policies",
    "quotas",
    "run_at_once",
    "texts",
    "times",
    "wait_until",
]

PATIENCE: Final = 30.0
"""Seconds after which a test gives up waiting for what ought to happen at once."""

STORE_KINDS: Final = ("memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.real_server))
"""The stores that hold keys and invites, as parameters; `store_url` opens each."""


class CountedArgon2:
    """Stands in front of a hasher's argon2: counts the checks, and holds them up while its gate is closed."""

    def __init__(self, argon2_hasher: argon2.PasswordHasher) -> None:
        self._argon2 = argon2_hasher
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0
        self.running = 0
        self.most_running = 0
        self.failure: BaseException | None = None

    def hash(self, secret: str) -> str:
        return self._argon2.hash(secret)

    def verify(self, secret_hash: str, secret: str) -> bool:
        with self._lock:
            self.calls += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            # A child after a fork is not held up: nobody there could ever open the gate.
            if os.getpid() == self._pid:
                assert self.gate.wait(PATIENCE), "nobody opened the gate"
            if self.failure is not None:
                raise self.failure
            return self._argon2.verify(secret_hash, secret)
        finally:
            with self._lock:
                self.running -= 1


def count_argon2(hasher: SecretHasher) -> CountedArgon2:
    """Put a counted argon2 into a hasher, and return it."""
    counted = CountedArgon2(hasher._argon2)
    hasher._argon2 = counted  # type: ignore[assignment]  # it has the two methods that are used
    return counted


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
"""Texts that a name or a note may be."""

key_ids = st.from_regex(r"[A-Za-z0-9_-]{1,100}", fullmatch=True)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)).map(
    lambda time: time.replace(microsecond=0)
)
durations = st.integers(1, 36_500 * 86_400).map(lambda seconds: timedelta(seconds=seconds))
quotas = st.builds(Quota, st.integers(1, 999_999_999), durations)
policies = st.builds(
    KeyPolicy,
    scopes=st.frozensets(st.sampled_from(sorted(SCOPES))),
    kinds=st.frozensets(st.sampled_from(["register", "reset", "roster"])),
    groups=st.frozensets(texts, max_size=3),
    roles=st.frozensets(texts, max_size=3),
    allow_username=st.booleans(),
    max_expiry=st.none() | st.just(NEVER) | durations,
    max_uses=st.none() | st.integers(1, 2**31),
    quota=st.none() | quotas,
    all_invites=st.booleans(),
    header_only=st.booleans(),
)
keys_of_any_kind = st.builds(
    ApiKey,
    id=st.builds(generate_key_id),
    host=st.sampled_from(["example.com", "bücher.example"]),
    name=st.none() | texts,
    secret_hash=texts,
    tag=st.binary(min_size=8, max_size=8),
    previous=st.none()
    | st.builds(PreviousSecret, secret_hash=texts, tag=st.binary(min_size=8, max_size=8), valid_until=times),
    policy=policies,
    created_at=times,
    expires_at=st.none() | times,
    last_used_at=st.none() | times,
)
invites_of_any_kind = st.builds(
    Invite,
    token=st.builds(generate_token),
    host=st.sampled_from(["example.com", "bücher.example"]),
    kind=st.sampled_from(["register", "roster", "reset"]),
    username=st.none() | texts,
    registration=st.booleans(),
    created_at=times,
    expires_at=st.none() | times,
    max_uses=st.none() | st.integers(5, 2**31),
    uses=st.integers(0, 5),
    source=texts,
    groups=st.lists(texts, max_size=3).map(tuple),
    roles=st.lists(texts, max_size=3).map(tuple),
    note=st.none() | texts,
    closed_at=st.none() | times,
    revoked_by=st.none() | texts,
)
