"""What every store of keys is held to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest

from invites_core.errors import KeyExists
from invites_core.keys import DEFAULT_POLICY, ApiKey, KeyPolicy, PreviousSecret
from invites_core.store import KeyStore
from invites_core.testing.base import THREADS, BaseSuite, run_at_once
from invites_core.testing.clock import NOON
from invites_core.testing.grants import GrantTests
from invites_core.testing.records import FULL_POLICY, SECOND, make_key

__all__ = ["KeyStoreSuite"]

NAMES: Final = [
    pytest.param("My test key", id="spaces"),
    pytest.param('it\'s "quoted"; DROP TABLE keys --', id="quotes"),
    pytest.param("tab\tnewline\nreturn\r", id="controls"),
    pytest.param("Schlüssel 🗝️ مفتاح", id="emoji-and-right-to-left"),
    pytest.param("é is not e\u0301", id="normal-forms-are-kept-apart"),
    pytest.param("x" * 255, id="long"),
    pytest.param(None, id="none"),
]


class KeyStoreSuite(GrantTests, BaseSuite):
    """What a `KeyStore` promises. Override the fixture ``store``."""

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(make_key(), id="plain"),
            pytest.param(make_key(name=None), id="without-a-name"),
            pytest.param(make_key(host="bücher.example"), id="unicode-host"),
            pytest.param(make_key(id="-LihiCNf28-X"), id="id-with-a-hyphen-first"),
            pytest.param(make_key(id="a" * 200), id="long-id"),
            pytest.param(make_key(tag=b"\x00" * 8), id="tag-of-zeros"),
            pytest.param(make_key(policy=FULL_POLICY), id="full-policy"),
            pytest.param(make_key(policy=KeyPolicy(scopes=frozenset(), max_uses=None)), id="policy-without-bounds"),
            pytest.param(
                make_key(
                    previous=PreviousSecret(secret_hash="old", tag=b"\xff" * 8, valid_until=NOON + SECOND),
                    expires_at=NOON + 2 * SECOND,
                    last_used_at=NOON + 3 * SECOND,
                ),
                id="rotated-and-used",
            ),
        ],
    )
    def test_key_comes_back_as_it_was_added(self, store: KeyStore, key: ApiKey) -> None:
        """A key that was added is found with every field as it was."""
        store.add_key(key)
        assert store.find_key(key.id) == key

    @pytest.mark.parametrize("name", NAMES)
    def test_name_comes_back_as_it_was_added(self, store: KeyStore, name: str | None) -> None:
        """A name is kept to the letter."""
        key = make_key(name=name)
        store.add_key(key)
        assert [found.name for found in store.list_keys()] == [name]

    def test_unknown_key_is_none(self, store: KeyStore) -> None:
        """An id that no key has finds nothing."""
        store.add_key(make_key())
        assert store.find_key("HTwALnKL") is None

    def test_ids_are_told_apart_by_case(self, store: KeyStore) -> None:
        """Two ids that differ in the case of a letter are two keys."""
        upper, lower = make_key(id="ABCDEFGH"), make_key(id="abcdefgh")
        store.add_key(upper)
        assert store.find_key(lower.id) is None
        store.add_key(lower)
        assert store.find_key(upper.id) == upper
        assert store.find_key(lower.id) == lower

    @pytest.mark.parametrize("host", ["example.com", "example.org"])
    def test_id_is_unique_over_all_hosts(self, store: KeyStore, host: str) -> None:
        """A second key of an id is refused on every host, and the first stays as it was."""
        first = make_key()
        store.add_key(first)
        with pytest.raises(KeyExists):
            store.add_key(make_key(id=first.id, host=host, name="another"))
        assert store.list_keys() == [first]

    def test_empty_store_lists_nothing(self, store: KeyStore) -> None:
        """Without keys the list is empty."""
        assert list(store.list_keys()) == []
        assert list(store.list_keys("example.com")) == []

    def test_list_is_oldest_first(self, store: KeyStore) -> None:
        """Keys are listed by time, and by id within a second, whatever the order they were added in."""
        keys = [
            make_key(id="bbbbbbbb", created_at=NOON),
            make_key(id="Zzzzzzzz", created_at=NOON + SECOND),
            make_key(id="aaaaaaaa", created_at=NOON + SECOND),
            make_key(id="AAAAAAAA", created_at=NOON + 2 * SECOND),
        ]
        for index in (2, 0, 3, 1):
            store.add_key(keys[index])
        assert list(store.list_keys()) == keys

    def test_list_of_a_host_has_its_keys_alone(self, store: KeyStore) -> None:
        """Listing a host shows no key of another."""
        mine, other = make_key(host="example.com"), make_key(host="example.org")
        store.add_key(mine)
        store.add_key(other)
        assert list(store.list_keys("example.com")) == [mine]
        assert list(store.list_keys("example.org")) == [other]
        assert list(store.list_keys("com")) == []

    def test_deleted_key_is_gone(self, store: KeyStore) -> None:
        """A key whose deletion has returned is neither found nor listed; others stay."""
        doomed, other = make_key(), make_key()
        store.add_key(doomed)
        store.add_key(other)
        assert store.delete_key(doomed.id, host=doomed.host, now=NOON) is True
        assert store.find_key(doomed.id) is None
        assert list(store.list_keys()) == [other]

    def test_second_deletion_deletes_nothing(self, store: KeyStore) -> None:
        """Only the call that deleted a key says so."""
        key = make_key()
        store.add_key(key)
        assert store.delete_key(key.id, host=key.host, now=NOON) is True
        assert store.delete_key(key.id, host=key.host, now=NOON) is False

    def test_key_of_another_host_is_not_deleted(self, store: KeyStore) -> None:
        """A deletion that names another host leaves the key where it is."""
        key = make_key(host="example.com")
        store.add_key(key)
        assert store.delete_key(key.id, host="example.org", now=NOON) is False
        assert store.find_key(key.id) == key

    @pytest.mark.parametrize("host", ["example.com", "example.org"])
    def test_deleted_id_never_comes_back(self, store: KeyStore, host: str) -> None:
        """The id of a deleted key is refused on every host, so that no import brings the key back."""
        key = make_key(host="example.com")
        store.add_key(key)
        store.delete_key(key.id, host=key.host, now=NOON)
        with pytest.raises(KeyExists):
            store.add_key(make_key(id=key.id, host=host))
        assert store.find_key(key.id) is None
        assert list(store.list_keys()) == []

    def test_deletion_of_nothing_leaves_no_mark(self, store: KeyStore) -> None:
        """An id that was never there can be added after somebody tried to delete it."""
        key = make_key()
        assert store.delete_key(key.id, host=key.host, now=NOON) is False
        store.add_key(key)
        assert store.delete_key(key.id, host="example.org", now=NOON) is False
        assert store.find_key(key.id) == key

    def test_records_are_values(self, store: KeyStore) -> None:
        """What was found and listed before a deletion stays as it was."""
        key = make_key()
        store.add_key(key)
        found, listed = store.find_key(key.id), store.list_keys()
        store.delete_key(key.id, host=key.host, now=NOON)
        assert found == key
        assert list(listed) == [key]

    def test_threads_add_without_loss(self, store: KeyStore) -> None:
        """Keys that many threads add at once are all there."""
        shares = [[make_key() for _ in range(25)] for _ in range(THREADS)]

        def add_all(share: list[ApiKey]) -> None:
            for key in share:
                store.add_key(key)

        outcomes = run_at_once([partial(add_all, share) for share in shares])
        assert outcomes == [None] * THREADS
        assert {key.id for key in store.list_keys()} == {key.id for share in shares for key in share}

    def test_one_thread_wins_an_id(self, store: KeyStore) -> None:
        """Of many threads that add a key of the same id one succeeds, and its key is the one that is found."""
        rivals = [make_key(id="HTwALnKL", name=f"rival {number}") for number in range(THREADS)]
        outcomes = run_at_once([partial(store.add_key, key) for key in rivals])
        winners = [key for key, outcome in zip(rivals, outcomes, strict=True) if outcome is None]
        assert len(winners) == 1
        assert sum(isinstance(outcome, KeyExists) for outcome in outcomes) == THREADS - 1
        assert store.find_key("HTwALnKL") == winners[0]

    def test_one_thread_deletes_a_key(self, store: KeyStore) -> None:
        """Of many threads that delete the same key one is told that it did."""
        key = make_key()
        store.add_key(key)
        outcomes = run_at_once([lambda: store.delete_key(key.id, host=key.host, now=NOON)] * THREADS)
        assert sorted(map(bool, outcomes)) == [False] * (THREADS - 1) + [True]
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]

    def test_update_changes_name_policy_and_expiry(self, store: KeyStore) -> None:
        """An update changes these three to the values of the new record, and no other field."""
        key = make_key(last_used_at=NOON)
        store.add_key(key)
        new = replace(key, name=None, policy=FULL_POLICY, expires_at=NOON + SECOND)
        assert store.update_key(key, new) is True
        assert store.find_key(key.id) == new
        other_fields = replace(new, secret_hash="another", tag=b"another8", last_used_at=None)
        assert store.update_key(new, other_fields) is True
        assert store.find_key(key.id) == new

    @pytest.mark.parametrize(
        "changed",
        [
            pytest.param({"name": "another"}, id="name"),
            pytest.param({"name": None}, id="no-name"),
            pytest.param({"policy": FULL_POLICY}, id="policy"),
            pytest.param({"expires_at": NOON + SECOND}, id="expiry"),
        ],
    )
    def test_update_of_what_is_not_there_changes_nothing(self, store: KeyStore, changed: dict[str, Any]) -> None:
        """A key that is not as the old record says stays as it is."""
        key = make_key()
        store.add_key(key)
        assert store.update_key(replace(key, **changed), replace(key, name="new")) is False
        assert store.find_key(key.id) == key

    def test_update_of_another_key_changes_nothing(self, store: KeyStore) -> None:
        """An update is of one key: an unknown one is not made, and others stay as they are."""
        key, other = make_key(), make_key()
        store.add_key(other)
        assert store.update_key(key, replace(key, name="new")) is False
        assert list(store.list_keys()) == [other]

    def test_update_goes_beside_uses_and_rotations(self, store: KeyStore) -> None:
        """A use or a rotation that was recorded since does not stand in the way of an update, nor is it undone."""
        key = make_key()
        store.add_key(key)
        store.record_key_uses({key.id: NOON})
        rotated = store.rotate_key(key.id, host=key.host, secret_hash="new", tag=b"newnewne", previous_until=NOON)
        assert rotated is not None
        assert store.update_key(key, replace(key, name="new")) is True
        assert store.find_key(key.id) == replace(rotated, name="new")

    def test_one_thread_updates_from_a_state(self, store: KeyStore) -> None:
        """Of many threads that change the same record one succeeds, and its change is there."""
        key = make_key()
        store.add_key(key)
        rivals = [replace(key, name=f"rival {number}") for number in range(THREADS)]
        outcomes = run_at_once([partial(store.update_key, key, rival) for rival in rivals])
        assert sorted(map(repr, outcomes)) == ["False"] * (THREADS - 1) + ["True"]
        assert store.find_key(key.id) == rivals[outcomes.index(True)]

    def test_rotation_keeps_the_secret_that_was_there(self, store: KeyStore) -> None:
        """The hash and the tag of before become the previous ones, and those of before that are gone."""
        key = make_key()
        store.add_key(key)
        first = store.rotate_key(
            key.id, host=key.host, secret_hash="second", tag=b"second22", previous_until=NOON + SECOND
        )
        previous = PreviousSecret(secret_hash=key.secret_hash, tag=key.tag, valid_until=NOON + SECOND)
        assert first == replace(key, secret_hash="second", tag=b"second22", previous=previous)
        second = store.rotate_key(key.id, host=key.host, secret_hash="third", tag=b"third333", previous_until=NOON)
        assert second is not None
        assert second.previous == PreviousSecret(secret_hash="second", tag=b"second22", valid_until=NOON)
        assert store.find_key(key.id) == second

    def test_repeated_rotation_changes_nothing(self, store: KeyStore) -> None:
        """A rotation whose answer was lost can be repeated: the secret of before is still the previous one."""
        key = make_key()
        store.add_key(key)
        rotate = partial(store.rotate_key, key.id, host=key.host, secret_hash="second", tag=b"second22")
        first = rotate(previous_until=NOON + SECOND)
        assert rotate(previous_until=NOON + SECOND) == rotate(previous_until=NOON) == first
        assert store.find_key(key.id) == first

    def test_rotation_without_a_grace_drops_every_older_secret(self, store: KeyStore) -> None:
        """Without a time for the previous secret there is none any more."""
        key = make_key(previous=PreviousSecret(secret_hash="old", tag=b"oldoldol", valid_until=NOON))
        store.add_key(key)
        rotated = store.rotate_key(key.id, host=key.host, secret_hash="new", tag=b"newnewne", previous_until=None)
        assert rotated == replace(key, secret_hash="new", tag=b"newnewne", previous=None)
        assert store.find_key(key.id) == rotated

    def test_key_of_another_host_is_not_rotated(self, store: KeyStore) -> None:
        """A rotation that names another host, or no key, gives None and changes nothing."""
        key = make_key()
        store.add_key(key)
        for key_id, host in ((key.id, "example.org"), ("HTwALnKL", key.host)):
            rotated = store.rotate_key(key_id, host=host, secret_hash="new", tag=b"newnewne", previous_until=NOON)
            assert rotated is None
        assert list(store.list_keys()) == [key]

    def test_uses_are_recorded_forwards_alone(self, store: KeyStore) -> None:
        """The latest use of each key is kept; an earlier one, and one of a key that is gone, changes nothing."""
        fresh, used = make_key(), make_key(created_at=NOON + SECOND, last_used_at=NOON)
        store.add_key(fresh)
        store.add_key(used)
        store.record_key_uses({fresh.id: NOON, used.id: NOON + SECOND, "HTwALnKL": NOON})
        expected = [replace(fresh, last_used_at=NOON), replace(used, last_used_at=NOON + SECOND)]
        assert list(store.list_keys()) == expected
        store.record_key_uses({fresh.id: NOON - SECOND, used.id: NOON})
        assert list(store.list_keys()) == expected

    def test_deletion_leaves_its_time(self, store: KeyStore) -> None:
        """When a key was deleted is kept, by the first deletion; of others nothing is."""
        key, other = make_key(), make_key()
        store.add_key(key)
        store.add_key(other)
        assert store.find_deletion(key.id) is None
        store.delete_key(key.id, host="example.org", now=NOON)
        assert store.find_deletion(key.id) is None
        store.delete_key(key.id, host=key.host, now=NOON + SECOND)
        store.delete_key(key.id, host=key.host, now=NOON + 2 * SECOND)
        assert store.find_deletion(key.id) == NOON + SECOND
        assert store.find_deletion(other.id) is None

    def test_deleted_key_is_not_changed(self, store: KeyStore) -> None:
        """Neither update nor rotation nor a use brings a deleted key back."""
        key = make_key(policy=DEFAULT_POLICY)
        store.add_key(key)
        store.delete_key(key.id, host=key.host, now=NOON + timedelta(days=1))
        assert store.update_key(key, replace(key, name="new")) is False
        assert store.rotate_key(key.id, host=key.host, secret_hash="n", tag=b"n" * 8, previous_until=None) is None
        store.record_key_uses({key.id: NOON})
        assert store.find_key(key.id) is None
