"""What is stored of a secret, and how a secret is checked against it.

Two walls stand between a stolen database and a secret. The secrets that this library makes hold 192 random bits, and
for secrets of 112 bits and more NIST SP 800-63B asks for no slow hash; argon2id is the second wall, so its cost is
low. In front of it stands a tag of 64 bits, which lets a wrong secret end in microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import argon2
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

from invites_core.errors import Busy, CorruptRecord, InvalidKey, StorageError
from invites_core.process import PerProcess
from invites_core.waiting import Signal, get_waiting

__all__ = ["HasherStats", "SecretHasher", "compute_tag"]

TAG_KEY: Final = b"invites-api tag v1"
TAG_SIZE: Final = 8

# A stored hash says itself what work it asks for, so what is too much must be said here. The bounds leave room for
# every common choice of parameters (RFC 9106, OWASP), and keep a planted row from stopping the service.
MAX_TIME_COST: Final = 16
MAX_MEMORY_KIB: Final = 64 * 1024
MAX_PARALLELISM: Final = 4
MIN_HASH_BYTES: Final = 16
MAX_HASH_BYTES: Final = 64


def compute_tag(key_id: str, secret: str) -> bytes:
    """Return the reject tag of a key.

    This is a stored format: the first 8 bytes of HMAC-SHA-256 with the key ``invites-api tag v1`` over the length
    of the id as one byte, the id, and the secret. It may only change under another key, beside the old one.

    Args:
        key_id: At most 255 characters of ASCII.
        secret: The secret in clear text.
    """
    id_bytes = key_id.encode()
    message = bytes((len(id_bytes),)) + id_bytes + secret.encode()
    return hmac.digest(TAG_KEY, message, "sha256")[:TAG_SIZE]


@dataclass(frozen=True, slots=True, kw_only=True)
class HasherStats:
    """What a hasher has done in this process, and is doing.

    Attributes:
        hits: The secrets that the cache knew.
        misses: Those that it did not know.
        checks: The computations of argon2 that were done to check a secret.
        seconds: How long they took together.
        computing: How many run now.
        waiting: How many calls wait for one, or for a permit.
    """

    hits: int
    misses: int
    checks: int
    seconds: float
    computing: int
    waiting: int


class _Pending:
    """One argon2 computation that is under way, for all who wait for it."""

    __slots__ = ("error", "matches", "waiters")

    def __init__(self) -> None:
        self.waiters: list[Signal] = []
        self.matches = False
        self.error: BaseException | None = None


class _State:
    """What one process knows: a random key for the cache's digests, the cache, and who is hashing."""

    __slots__ = (
        "cache",
        "checks",
        "computers",
        "computing",
        "digest_key",
        "hits",
        "lock",
        "misses",
        "pending",
        "seconds",
        "working",
    )

    def __init__(self, permits: int) -> None:
        self.digest_key = os.urandom(32)
        self.cache: OrderedDict[bytes, None] = OrderedDict()
        self.lock = threading.Lock()
        self.pending: dict[bytes, _Pending] = {}
        # Threads of their own, as many as there are permits. malloc has an arena for each thread, and keeps what it was
        # given there: computed in whichever thread asks, argon2's memory would be held once for each of those.
        self.computers = ThreadPoolExecutor(permits, thread_name_prefix="argon2")
        self.working = 0
        self.computing = 0
        self.hits = 0
        self.misses = 0
        self.checks = 0
        self.seconds = 0.0


class SecretHasher:
    """Hashes secrets with argon2id and checks them, with bounded memory and bounded waiting.

    Safe to share among threads and to carry across a fork: a child begins with an empty cache and a key of its own.
    """

    def __init__(
        self,
        *,
        time_cost: int = 5,
        memory_kib: int = 7 * 1024,
        permits: int = 1,
        threads: int = 8,
        cache_size: int = 10_000,
    ) -> None:
        """Set the cost of new hashes and the bounds of the work.

        Args:
            time_cost: Passes of argon2id over its memory.
            memory_kib: Memory of one computation, in KiB. The defaults are one of OWASP's equivalent choices.
            permits: How many computations may run at once; memory stays within permits times the memory of one.
            threads: How many threads of this process call `verify`. Those who compute and those who wait for a
                computation are together at most half of them, so that keys already known keep being answered.
            cache_size: How many verified secrets are remembered, by digest.
        """
        self._argon2 = argon2.PasswordHasher(
            time_cost=time_cost, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16
        )
        self._max_working = max(1, threads // 2)
        self._cache_size = cache_size
        self._state = PerProcess(lambda: _State(permits))

    def hash(self, secret: str) -> str:
        """Return the argon2id hash of a secret, in PHC string format. Waits for a permit; meant for making keys.

        Raises:
            StorageError: There was not memory enough to compute it.
        """
        try:
            return self._state.get().computers.submit(self._argon2.hash, secret).result()
        except (HashingError, RuntimeError) as error:
            # The latter where the system gives no thread.
            raise StorageError("no memory to compute a hash") from error

    def verify(self, secret: str, secret_hash: str) -> None:
        """Check that a secret matches a stored hash; call it only after the tag has matched.

        What the cache remembers is "this secret matches this hash", never "this key is allowed": the caller has read
        the key's row for this very request.

        Raises:
            InvalidKey: It does not match.
            Busy: Half of the threads are computing or waiting already; nothing was computed.
            CorruptRecord: The stored hash cannot be read, or asks for more work than the bounds allow.
            StorageError: There was not memory enough to compute it.
        """
        state = self._state.get()
        digest = hashlib.blake2b(
            b"%d/%b/%b" % (len(secret), secret.encode(), secret_hash.encode()), key=state.digest_key, digest_size=32
        ).digest()
        with state.lock:
            # Whoever computed it has put it there before leaving `pending`, both under this lock.
            if digest in state.cache:
                state.hits += 1
                return
            state.misses += 1
            if state.working >= self._max_working:
                raise Busy
            pending = state.pending.get(digest)
            done = get_waiting().make_signal()
            leads = pending is None
            if pending is None:
                pending = state.pending[digest] = _Pending()
            else:
                pending.waiters.append(done)
            state.working += 1
        try:
            if leads:
                self._lead(state, digest, pending, done, secret, secret_hash)
            else:
                done.acquire()
        finally:
            with state.lock:
                state.working -= 1
        if isinstance(pending.error, StorageError):
            raise type(pending.error)(str(pending.error)) from pending.error
        if pending.error is not None:
            raise StorageError("a key could not be checked") from pending.error
        if not pending.matches:
            raise InvalidKey("wrong secret")

    def get_stats(self) -> HasherStats:
        """Return what was done in this process, and what is being done."""
        state = self._state.get()
        with state.lock:
            return HasherStats(
                hits=state.hits,
                misses=state.misses,
                checks=state.checks,
                seconds=state.seconds,
                computing=state.computing,
                waiting=state.working - state.computing,
            )

    def _lead(
        self, state: _State, digest: bytes, pending: _Pending, done: Signal, secret: str, secret_hash: str
    ) -> None:
        """Compute for all who wait; whatever happens here, they are told."""
        try:
            computing = state.computers.submit(self._compute, state, secret, secret_hash)
            computing.add_done_callback(lambda _: done.release())
            done.acquire()
            pending.matches = computing.result()
        except BaseException as error:
            pending.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            with state.lock:
                del state.pending[digest]
                if pending.matches:
                    state.cache[digest] = None
                    if len(state.cache) > self._cache_size:
                        state.cache.popitem(last=False)
            # Nobody joins any more: they look for it under the lock.
            for waiter in pending.waiters:
                waiter.release()

    def _compute(self, state: _State, secret: str, secret_hash: str) -> bool:
        """Do the work, in a thread that has a permit."""
        began = time.perf_counter()
        with state.lock:
            state.computing += 1
        try:
            return self._matches(secret, secret_hash)
        finally:
            with state.lock:
                state.computing -= 1
                state.checks += 1
                state.seconds += time.perf_counter() - began

    def _matches(self, secret: str, secret_hash: str) -> bool:
        _check_bounds(secret_hash)
        try:
            return self._argon2.verify(secret_hash, secret)
        except VerifyMismatchError:
            return False
        except (InvalidHashError, UnicodeError) as error:
            raise CorruptRecord("a stored hash cannot be read") from error
        except VerificationError as error:
            # argon2 says the same of a failed allocation, which must never look like a wrong secret.
            if "memory" in str(error).lower():
                raise StorageError("no memory to compute a hash") from error
            raise CorruptRecord("a stored hash cannot be read") from error


def _check_bounds(secret_hash: str) -> None:
    """Refuse a stored hash whose work is out of bounds, before any of it is done."""
    try:
        asked = argon2.extract_parameters(secret_hash)
    except (InvalidHashError, ValueError) as error:
        raise CorruptRecord("a stored hash cannot be read") from error
    within = (
        asked.type is argon2.Type.ID
        and asked.version in (16, 19)
        and 1 <= asked.time_cost <= MAX_TIME_COST
        and 8 <= asked.memory_cost <= MAX_MEMORY_KIB
        and 1 <= asked.parallelism <= MAX_PARALLELISM
        and MIN_HASH_BYTES <= asked.hash_len <= MAX_HASH_BYTES
    )
    if not within:
        raise CorruptRecord("a stored hash asks for more work than the bounds allow")
