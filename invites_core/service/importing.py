"""Bringing keys over from another program, so that they work here with the ids and secrets that they have."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from invites_core.clock import Clock, read_clock, system_clock
from invites_core.errors import CorruptRecord, InvalidKey, KeyExists, OutcomeUnknown, StorageError
from invites_core.events import EventHook, send_event
from invites_core.foreign_keys import ForeignKey, KeySource, UnreadableKey
from invites_core.hashing import SecretHasher, compute_tag
from invites_core.hosts import Hosts
from invites_core.keys import ApiKey, format_key, is_key_id, parse_key
from invites_core.service.keys import MAX_NAME_LENGTH
from invites_core.store import KeyStore

__all__ = ["MIN_SECRET_LENGTH", "KeyImport", "RefusedKey", "import_keys"]

MIN_SECRET_LENGTH: Final = 22
"""The shortest secret that is taken, in characters of base64url: 132 bits. Less could be guessed at behind the tag."""

MAX_WORKERS: Final = 4
ATTEMPTS: Final = 3

_NOT_STORABLE: Final = re.compile("[\0\ud800-\udfff]+")

AfterStep: TypeAlias = Callable[[Literal["brought", "removed"], int, int], None]


@dataclass(frozen=True, slots=True)
class RefusedKey:
    """A key that was not brought over, or not taken away after it was.

    Attributes:
        id: The key.
        reason: Why, for people.
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyImport:
    """What an import has done with every key, by id.

    Attributes:
        imported: Brought over by this call.
        present: Here already, with the same secret; they are as they were.
        deleted: Deleted here once; they stay so, and stay where they came from.
        refused: Not brought over, or not taken away.
        removed: Taken away from where they came from, by this call.
    """

    imported: tuple[str, ...]
    present: tuple[str, ...]
    deleted: tuple[str, ...]
    refused: tuple[RefusedKey, ...]
    removed: tuple[str, ...]


def import_keys(
    key_store: KeyStore,
    source: KeySource,
    host: str,
    *,
    remove: bool = False,
    hasher: SecretHasher | None = None,
    hosts: Hosts | None = None,
    clock: Clock = system_clock,
    on_event: EventHook | None = None,
    after_step: AfterStep | None = None,
) -> KeyImport:
    """Bring the keys of a host over, with the policy of a plain key; a key is whole here or not there.

    It changes no key that is here already. A run that was cut short, or ended with an error, can be repeated: it goes
    on where that one ended.

    Args:
        key_store: Where they are to be.
        source: Where they are.
        host: Their host, in any spelling.
        remove: Whether to take each away from the source, after its secret was checked against what is stored here.
        hasher: How secrets are hashed; the default uses every core, as far as there are four.
        hosts: The hosts that are served; the default serves every valid one.
        clock: Where the time comes from.
        on_event: Called with an `Event` for each key that was brought over, in several threads at once; None: nobody
            is told.
        after_step: Called after each key in the caller's thread: what was done with it, how many are done, of how many.

    Returns:
        What became of each key.

    Raises:
        InvalidHost: Not a host name, not a host that is served, or not one of the source.
        StorageError: Either side failed. What was brought over until then is here.
    """
    host = (hosts or Hosts()).normalize_served(host)
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    importer = _Importer(
        key_store, host, hasher or SecretHasher(permits=workers, threads=2 * workers), read_clock(clock), on_event
    )
    tell = after_step or (lambda *_: None)
    # Oldest first, so that a run that was cut short leaves what the beginning of a list shows.
    listed = sorted(source.list_keys(host), key=_get_age)
    outcomes = importer.bring_all(listed, workers=workers, tell=tell)
    refused = [outcome for outcome in outcomes if isinstance(outcome, RefusedKey)]
    here = [key for key, outcome in zip(listed, outcomes, strict=True) if outcome in ("imported", "present")]
    removed = []
    for done, key in enumerate(here if remove else (), 1):
        # Never one that was not read back: this may be the only place where its secret still is.
        if not isinstance(key, ForeignKey) or not importer.is_copied(key):
            refused.append(RefusedKey(key.id, "its copy could not be verified, so it was not taken away"))
        elif source.remove_key(host, key.id, key.secret):
            removed.append(key.id)
        tell("removed", done, len(here))

    def select(kind: str) -> tuple[str, ...]:
        return tuple(key.id for key, outcome in zip(listed, outcomes, strict=True) if outcome == kind)

    return KeyImport(
        imported=select("imported"),
        present=select("present"),
        deleted=select("deleted"),
        refused=tuple(refused),
        removed=tuple(removed),
    )


def _get_age(key: ForeignKey | UnreadableKey) -> tuple[float, str]:
    known = isinstance(key, ForeignKey) and key.created_at is not None
    return (key.created_at.timestamp() if known else 0.0, key.id)  # type: ignore[union-attr]  # known says that


_Outcome: TypeAlias = Literal["imported", "present", "deleted"] | RefusedKey


class _Importer:
    """One import, on the side of the store that the keys come to."""

    def __init__(
        self, store: KeyStore, host: str, hasher: SecretHasher, now: datetime, on_event: EventHook | None
    ) -> None:
        self._store = store
        self._host = host
        self._hasher = hasher
        self._now = now
        self._on_event = on_event

    def bring_all(
        self, listed: Sequence[ForeignKey | UnreadableKey], *, workers: int, tell: AfterStep
    ) -> list[_Outcome]:
        """Bring keys over, several at once, and return what became of each, in their order."""
        outcomes = []
        with ThreadPoolExecutor(workers, "import") as pool:
            futures = [pool.submit(self._bring, key) for key in listed]
            try:
                for done, future in enumerate(futures, 1):
                    outcomes.append(future.result())
                    tell("brought", done, len(futures))
            finally:
                # After an error or Ctrl-C what has not begun does not begin.
                pool.shutdown(cancel_futures=True)
        return outcomes

    def is_copied(self, foreign: ForeignKey) -> bool:
        """Read a key anew, and check the whole secret against what is stored."""
        try:
            key = self._store.find_key(foreign.id)
            secret_hash = None if key is None or key.host != self._host else _find_hash(key, foreign)
            if secret_hash is None:
                return False
            self._hasher.verify(foreign.secret, secret_hash)
        except (InvalidKey, CorruptRecord):
            return False
        return True

    def _bring(self, foreign: ForeignKey | UnreadableKey) -> _Outcome:
        reason = foreign.reason if isinstance(foreign, UnreadableKey) else _find_fault(foreign)
        if reason is not None or isinstance(foreign, UnreadableKey):
            return RefusedKey(foreign.id, reason or "")
        made: ApiKey | None = None
        for _ in range(ATTEMPTS):
            try:
                outcome = self._find_outcome(foreign, made)
            except CorruptRecord:
                return RefusedKey(foreign.id, "what is stored of it here is damaged")
            if outcome == "imported":
                send_event(self._on_event, "key.imported", self._now, key_id=foreign.id, host=self._host)
            if outcome is not None:
                return outcome
            made = made or self._make(foreign)
            self._add(made)
        raise StorageError("a key was added, and is not there")

    def _find_outcome(self, foreign: ForeignKey, made: ApiKey | None) -> _Outcome | None:
        """Judge by what is here; None where nothing is, and nothing was."""
        found = self._store.find_key(foreign.id)
        if found is None:
            return None if self._store.find_deletion(foreign.id) is None else "deleted"
        if found.host != self._host:
            return RefusedKey(foreign.id, f"a key of {found.host} has this id here")
        if made is not None and found.secret_hash == made.secret_hash:
            # Its salt is this call's own.
            return "imported"
        if _find_hash(found, foreign) is None:
            return RefusedKey(foreign.id, "is here with another secret")
        return "present"

    def _make(self, foreign: ForeignKey) -> ApiKey:
        return ApiKey(
            id=foreign.id,
            host=self._host,
            # A name is for people: what of it cannot be kept is no reason to refuse a key that is in use.
            name=_NOT_STORABLE.sub("\ufffd", foreign.name or "")[:MAX_NAME_LENGTH] or None,
            secret_hash=self._hasher.hash(foreign.secret),
            tag=compute_tag(foreign.id, foreign.secret),
            created_at=foreign.created_at or self._now,
        )

    def _add(self, key: ApiKey) -> None:
        """Add a key. Whether it was there, or had been, a look tells afterwards."""
        with contextlib.suppress(KeyExists):
            try:
                self._store.add_key(key)
            except OutcomeUnknown as unknown:
                try:
                    self._store.add_key(key)
                except StorageError as error:
                    raise OutcomeUnknown(str(unknown)) from error


def _find_fault(foreign: ForeignKey) -> str | None:
    """Return why a key cannot be one here, or None."""
    if not is_key_id(foreign.id):
        return "its id is not base64url, or too long"
    try:
        # What no request could bring would be a key that never works.
        parse_key(format_key(foreign.id, foreign.secret))
    except InvalidKey:
        return "its secret is not base64url, or too long"
    if len(foreign.secret) < MIN_SECRET_LENGTH:
        return f"its secret is shorter than {MIN_SECRET_LENGTH} characters"
    return None


def _find_hash(key: ApiKey, foreign: ForeignKey) -> str | None:
    """Return the stored hash that this secret belongs to, or None; one that was rotated away here is known still."""
    tag = compute_tag(foreign.id, foreign.secret)
    if hmac.compare_digest(tag, key.tag):
        return key.secret_hash
    if key.previous is not None and hmac.compare_digest(tag, key.previous.tag):
        return key.previous.secret_hash
    return None
