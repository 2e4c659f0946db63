"""Taking imported keys away from where they were, and imports that end in the middle."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from invites_core.errors import OutcomeUnknown, StorageError
from invites_core.foreign_keys import UnreadableKey
from invites_core.hashing import SecretHasher
from invites_core.keys import ApiKey, generate_secret
from invites_core.service import ApiKeys
from invites_core.service.importing import KeyImport
from invites_core.stores.memory import MemoryStore
from invites_core.testing import cheap_hasher
from tests.helpers import PATIENCE
from tests.service.importing import Bring, Source, get_key, make_foreign, make_many
from tests.service.worlds import Faulty

# Taking away


def test_keys_are_taken_away_after_they_were_copied(bring: Bring, api_keys: ApiKeys) -> None:
    """With ``remove`` the source is empty afterwards, and every key works here; run again, there is nothing to do."""
    keys = make_many(3)
    source = Source(*keys)
    report = bring(source, remove=True)
    assert sorted(report.removed) == sorted(key.id for key in keys)
    assert source.keys == {}
    for key in keys:
        api_keys.verify(f"{key.id}/{key.secret}")
    assert bring(source, remove=True) == KeyImport(imported=(), present=(), deleted=(), refused=(), removed=())


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"secret_hash": cheap_hasher().hash("another")}, id="another-hash"),
        pytest.param({"secret_hash": "$argon2id$nonsense"}, id="no-hash"),
        pytest.param({"host": "other.example"}, id="another-host"),
        pytest.param({"tag": b"8 bytes!"}, id="another-tag"),
        pytest.param(None, id="gone"),
    ],
)
def test_a_copy_that_is_not_the_key_takes_nothing_away(
    bring: Bring, memory_store: MemoryStore, damage: dict[str, Any] | None
) -> None:
    """The whole secret is checked against what is read back; what does not match stays where it is, by name."""
    source = Source(make_foreign(), make_foreign("good"))
    bring(source)
    whole = get_key(memory_store, "6sKjFybZPGnx")

    class Damaging(Faulty):
        looks = 0

        def find_key(self, key_id: str) -> ApiKey | None:
            if key_id != "6sKjFybZPGnx":
                return memory_store.find_key(key_id)
            self.looks += 1
            if self.looks == 1:
                return whole
            return None if damage is None else replace(whole, **damage)

    report = bring(source, store=Damaging(memory_store), remove=True)
    assert [(one.id, "could not be verified" in one.reason) for one in report.refused] == [("6sKjFybZPGnx", True)]
    assert report.removed == ("good",)
    assert list(source.keys) == ["6sKjFybZPGnx"]


def test_what_changed_at_the_source_meanwhile_stays(bring: Bring) -> None:
    """A key that has another secret there by now is not counted as taken away."""
    source = Source(make_foreign())

    def change(step: str, *_: int) -> None:
        source.keys["6sKjFybZPGnx"] = make_foreign(secret=generate_secret())

    assert bring(source, remove=True, after_step=change).removed == ()
    assert list(source.keys) == ["6sKjFybZPGnx"]


# Cut short


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        pytest.param(["before"], StorageError, id="nothing-done"),
        pytest.param(["after", "before"], OutcomeUnknown, id="nobody-knows"),
    ],
)
def test_a_store_that_fails_in_the_middle_is_finished_by_a_repeat(
    bring: Bring, memory_store: MemoryStore, api_keys: ApiKeys, faults: Sequence[str], error: type[StorageError]
) -> None:
    """The store's error ends the run and says what is known; run again, every key is there once."""
    keys = make_many(8)
    store = Faulty(memory_store)
    for fault in faults:
        store.fail("add_key", fault)
    with pytest.raises(StorageError) as caught:
        bring(Source(*keys), store=store)
    assert type(caught.value) is error
    report = bring(Source(*keys))
    assert len(report.imported) + len(report.present) == 8
    assert len(memory_store.list_keys()) == 8
    for key in keys:
        api_keys.verify(f"{key.id}/{key.secret}")


def test_an_unknown_outcome_counts_as_imported(bring: Bring, memory_store: MemoryStore) -> None:
    """A key whose addition was done and not confirmed is this call's own all the same."""
    store = Faulty(memory_store)
    store.fail("add_key", "after")
    assert bring(Source(make_foreign()), store=store).imported == ("6sKjFybZPGnx",)
    assert store.calls.count("add_key") == 2


def test_taking_away_that_fails_in_the_middle_is_finished_by_a_repeat(bring: Bring, api_keys: ApiKeys) -> None:
    """What was not taken away is there still, and the next run takes it."""
    keys = make_many(4)
    source = Source(*keys)

    def fail_later(step: str, done: int, total: int) -> None:
        if (step, done) == ("removed", 2):
            source.failures.append(OutcomeUnknown("the connection was lost"))

    with pytest.raises(OutcomeUnknown):
        bring(source, remove=True, after_step=fail_later)
    assert len(source.keys) == 2
    report = bring(source, remove=True)
    assert (len(report.present), len(report.removed), source.keys) == (2, 2, {})
    for key in keys:
        api_keys.verify(f"{key.id}/{key.secret}")


def test_ctrl_c_ends_it_soon(bring: Bring, memory_store: MemoryStore) -> None:
    """What has not begun when the caller is interrupted does not begin; run again, it is complete."""
    source = Source(*make_many(200))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(source, after_step=interrupt, hasher=SecretHasher())
    assert len(memory_store.list_keys()) < 100
    bring(source)
    assert len(memory_store.list_keys()) == 200


def test_steps_are_told_in_order(bring: Bring) -> None:
    """The caller hears of every key in its own thread, first those that are brought over, then those taken away."""
    told: list[tuple[str, int, int]] = []
    threads = set()

    def note(step: str, done: int, total: int) -> None:
        told.append((step, done, total))
        threads.add(threading.current_thread())

    bring(Source(*make_many(3), UnreadableKey(id="x", reason="is not a key")), remove=True, after_step=note)
    assert told == [("brought", done, 4) for done in (1, 2, 3, 4)] + [("removed", done, 3) for done in (1, 2, 3)]
    assert threads == {threading.current_thread()}


def test_secrets_are_hashed_several_at_once(bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are two cores, two secrets are being hashed at the same time."""
    meeting = threading.Barrier(2)

    class Meeting(SecretHasher):
        def hash(self, secret: str) -> str:
            meeting.wait(PATIENCE)
            return super().hash(secret)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert len(bring(Source(*make_many(4)), hasher=Meeting(time_cost=1, memory_kib=8)).imported) == 4
