"""What tests share that is not a fixture: records, a clock, and an argon2 that can be counted and held up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import argon2
from hypothesis import strategies as st

from invites_core.hashing import SecretHasher
from invites_core.invites import Invite, generate_token
from invites_core.keys import NEVER, SCOPES, ApiKey, KeyPolicy, PreviousSecret, Quota, generate_key_id

T = TypeVar("T")

NOON: Final = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PATIENCE: Final = 30.0
"""Seconds after which a test gives up waiting for what ought to happen at once."""


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta | float) -> None:
        """Move on, by a duration or a number of seconds."""
        self.now += by if isinstance(by, timedelta) else timedelta(seconds=by)


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


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return as soon as something is so; fail where it never comes."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def run_at_once(functions: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Run each function in a thread of its own, all let go at the same moment; return what they returned or raised."""
    outcomes: list[T | Exception | None] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index: int, function: Callable[[], T]) -> None:
        barrier.wait(PATIENCE)
        try:
            outcomes[index] = function()
        except Exception as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread did not come to an end"
    return outcomes  # type: ignore[return-value]  # every thread has put its outcome there


def make_key(**fields: Any) -> ApiKey:
    """Return a plain key with an id of its own, with some fields set."""
    plain = ApiKey(
        id=generate_key_id(),
        host="example.com",
        name="My test key",
        secret_hash="$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$not-a-real-hash",
        tag=b"\x00\xff8bytes",
        created_at=NOON,
    )
    return replace(plain, **fields)


def make_invite(**fields: Any) -> Invite:
    """Return a plain invite with a token of its own, with some fields set."""
    plain = Invite(
        token=generate_token(),
        host="example.com",
        created_at=NOON,
        expires_at=NOON + timedelta(days=7),
        source="command",
    )
    return replace(plain, **fields)


FULL_POLICY: Final = KeyPolicy(
    scopes=frozenset({"create", "read", "revoke", "redeem"}),
    kinds=frozenset({"register", "roster", "reset"}),
    groups=frozenset({"staff", "Gäste"}),
    roles=frozenset({"prosody:admin"}),
    allow_username=True,
    max_expiry=timedelta(days=30),
    max_uses=10,
    quota=Quota(100, timedelta(days=1)),
    all_invites=True,
    header_only=True,
)

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
