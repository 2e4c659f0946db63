"""What every store is held to: one suite for each protocol of ``invites_core.store``.

The author of a store makes a subclass whose name begins with ``Test`` and overrides the fixture ``store``, which gives
a new and empty one::

    class TestMyKeys(KeyStoreSuite):
        @pytest.fixture
        def store(self) -> Iterator[KeyStore]:
            ...

A store that is both runs `StoreSuite` too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from invites_core.errors import InviteExists, KeyExists, KeyUnknown
from invites_core.invites import Invite
from invites_core.keys import ApiKey, KeyPolicy, PreviousSecret
from invites_core.store import InviteStore, KeyStore, Store
from tests.helpers import (
    FULL_POLICY,
    NOON,
    invites_of_any_kind,
    keys_of_any_kind,
    make_invite,
    make_key,
    policies,
    run_at_once,
    wait_until,
)

THREADS: Final = 8

SECOND: Final = timedelta(seconds=1)

# The examples of one test share its store: each has ids of its own.
on_one_store = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
)

NAMES: Final = [
    pytest.param("My test key", id="spaces"),
    pytest.param('it\'s "quoted"; DROP TABLE keys --', id="quotes"),
    pytest.param("tab\tnewline\nreturn\r", id="controls"),
    pytest.param("Schlüssel 🗝️ مفتاح", id="emoji-and-right-to-left"),
    pytest.param("é is not e\u0301", id="normal-forms-are-kept-apart"),
    pytest.param("x" * 255, id="long"),
    pytest.param(None, id="none"),
]


class BaseSuite:
    """What every store has."""

    @pytest.fixture
    def store(self) -> Iterator[Any]:
        """Give a new and empty store."""
        raise NotImplementedError("override the fixture `store`")

    def test_answers_a_ping(self, store: Store) -> None:
        """A store that is open answers."""
        store.ping()

    def test_can_be_closed_twice(self, store: Store) -> None:
        """Closing what is closed does nothing."""
        store.close()
        store.close()

    def test_has_no_problems(self, store: Store) -> None:
        """A store that was only used as it should be has nothing wrong with it."""
        assert list(store.find_problems()) == []

    def test_tells_its_features_and_its_location(self, store: Store) -> None:
        """A store says in texts what it can, and where its data is."""
        assert isinstance(store.features, frozenset)
        assert all(isinstance(feature, str) for feature in store.features)
        assert isinstance(store.location, str)
        assert store.location


class KeyStoreSuite(BaseSuite):
    """What a `KeyStore` promises."""

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

    @on_one_store
    @given(key=keys_of_any_kind)
    def test_any_key_comes_back(self, store: KeyStore, key: ApiKey) -> None:
        """Whatever is in the fields of a key, it is found as it was added."""
        store.add_key(key)
        assert store.find_key(key.id) == key

    @on_one_store
    @given(policy=policies)
    def test_any_policy_comes_back(self, store: KeyStore, policy: KeyPolicy) -> None:
        """A store neither widens nor narrows a policy."""
        key = make_key(policy=policy)
        store.add_key(key)
        found = store.find_key(key.id)
        assert found is not None
        assert found.policy == policy

    def test_unknown_key_is_none(self, store: KeyStore) -> None:
        """An id that no key has finds nothing."""
        store.add_key(make_key())
        assert store.find_key("HTwALnKL") is None

    @on_one_store
    @given(key_id=st.text(max_size=300))
    def test_any_text_can_be_looked_for(self, store: KeyStore, key_id: str) -> None:
        """A text that cannot be an id finds nothing, and is no error."""
        assert store.find_key(key_id) is None

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


class InviteStoreSuite(BaseSuite):
    """What an `InviteStore` promises."""

    @pytest.mark.parametrize(
        "invite",
        [
            pytest.param(make_invite(), id="plain"),
            pytest.param(make_invite(host="bücher.example"), id="unicode-host"),
            pytest.param(make_invite(token="-" * 16), id="shortest-token"),
            pytest.param(make_invite(token="_" * 255), id="longest-token"),
            pytest.param(make_invite(expires_at=None), id="never-expires"),
            pytest.param(make_invite(max_uses=None, uses=7), id="uses-without-limit"),
            pytest.param(make_invite(max_uses=1, uses=1, closed_at=NOON + SECOND), id="used-up"),
            pytest.param(make_invite(closed_at=NOON, revoked_by="api/token/HTwALnKL"), id="revoked"),
            pytest.param(make_invite(kind="reset", username="alice", registration=False), id="reset"),
            pytest.param(make_invite(kind="roster", username="żaneta", registration=False), id="roster"),
            pytest.param(
                make_invite(groups=("staff", "Gäste", "staff"), roles=("prosody:member", "x:admin"), note="a\n'b"),
                id="groups-roles-note-in-their-order",
            ),
        ],
    )
    def test_invite_comes_back_as_it_was_added(self, store: InviteStore, invite: Invite) -> None:
        """An invite that was added is found with every field as it was."""
        store.add_invites([invite])
        assert store.find_invite(invite.token) == invite

    @on_one_store
    @given(invite=invites_of_any_kind)
    def test_any_invite_comes_back(self, store: InviteStore, invite: Invite) -> None:
        """Whatever is in the fields of an invite, it is found as it was added."""
        store.add_invites([invite])
        assert store.find_invite(invite.token) == invite

    def test_landing_page_is_not_stored(self, store: InviteStore) -> None:
        """The link follows from the settings of the day it is asked for, so a store does not keep it."""
        invite = make_invite(landing_page="https://example.com/invite?abc")
        store.add_invites([invite])
        found = store.find_invite(invite.token)
        assert found is not None
        assert found.landing_page == ""

    def test_unknown_invite_is_none(self, store: InviteStore) -> None:
        """A token that no invite has finds nothing."""
        store.add_invites([make_invite()])
        assert store.find_invite("x" * 24) is None

    @on_one_store
    @given(token=st.text(max_size=300))
    def test_any_text_can_be_looked_for(self, store: InviteStore, token: str) -> None:
        """A text that cannot be a token finds nothing, and is no error."""
        assert store.find_invite(token) is None

    def test_tokens_are_told_apart_by_case(self, store: InviteStore) -> None:
        """Two tokens that differ in the case of a letter are two invites."""
        upper, lower = make_invite(token="A" * 24), make_invite(token="a" * 24)
        store.add_invites([upper])
        assert store.find_invite(lower.token) is None
        store.add_invites([lower])
        assert store.find_invite(lower.token) == lower
        assert store.find_invite(upper.token) == upper

    def test_many_are_added_at_once(self, store: InviteStore) -> None:
        """A thousand invites are added by one call."""
        invites = [make_invite() for _ in range(1_000)]
        store.add_invites(invites)
        assert [store.find_invite(invite.token) for invite in invites] == invites

    @pytest.mark.parametrize("host", ["example.com", "example.org"])
    def test_token_is_unique_over_all_hosts(self, store: InviteStore, host: str) -> None:
        """A second invite of a token is refused on every host, and the first stays as it was."""
        first = make_invite()
        store.add_invites([first])
        with pytest.raises(InviteExists):
            store.add_invites([make_invite(token=first.token, host=host, note="another")])
        assert store.find_invite(first.token) == first

    def test_refused_batch_adds_nothing(self, store: InviteStore) -> None:
        """Where one token of many is taken, none of the others is added."""
        there = make_invite()
        store.add_invites([there])
        batch = [make_invite(), make_invite(token=there.token), make_invite()]
        with pytest.raises(InviteExists):
            store.add_invites(batch)
        assert [store.find_invite(batch[index].token) for index in (0, 2)] == [None, None]
        assert store.find_invite(there.token) == there

    def test_batch_with_a_token_twice_adds_nothing(self, store: InviteStore) -> None:
        """Two invites of one token in the same call are refused, and none is added."""
        twin = make_invite()
        batch = [make_invite(), twin, make_invite(token=twin.token, note="another")]
        with pytest.raises(InviteExists):
            store.add_invites(batch)
        assert [store.find_invite(invite.token) for invite in batch] == [None, None, None]

    def test_threads_add_without_loss(self, store: InviteStore) -> None:
        """Invites that many threads add at once are all there."""
        shares = [[[make_invite() for _ in range(size)] for size in (1, 3, 1, 5) * 5] for _ in range(THREADS)]

        def add_all(share: list[list[Invite]]) -> None:
            for batch in share:
                store.add_invites(batch)

        outcomes = run_at_once([partial(add_all, share) for share in shares])
        assert outcomes == [None] * THREADS
        added = [invite for share in shares for batch in share for invite in batch]
        assert [store.find_invite(invite.token) for invite in added] == added

    def test_one_thread_wins_a_token(self, store: InviteStore) -> None:
        """Of many threads that add an invite of one token one succeeds, and nothing of the others' batches is there."""
        token = make_invite().token
        batches = [[make_invite(), make_invite(token=token, note=f"rival {number}")] for number in range(THREADS)]
        outcomes = run_at_once([partial(store.add_invites, batch) for batch in batches])
        winners = [batch for batch, outcome in zip(batches, outcomes, strict=True) if outcome is None]
        assert len(winners) == 1
        assert sum(isinstance(outcome, InviteExists) for outcome in outcomes) == THREADS - 1
        assert store.find_invite(token) == winners[0][1]
        there = [batch for batch in batches if store.find_invite(batch[0].token) is not None]
        assert there == winners


class StoreSuite(BaseSuite):
    """What a store promises that holds both: no invite of a key that is not there."""

    def test_key_that_is_there_makes_invites(self, store: Store) -> None:
        """An invite is added for a key of the same store."""
        key, invite = make_key(), make_invite()
        store.add_key(key)
        store.add_invites([invite], key_id=key.id)
        assert store.find_invite(invite.token) == invite

    def test_unknown_key_makes_no_invites(self, store: Store) -> None:
        """For a key that is not there nothing is added."""
        store.add_key(make_key())
        invites = [make_invite(), make_invite()]
        with pytest.raises(KeyUnknown):
            store.add_invites(invites, key_id="HTwALnKL")
        assert [store.find_invite(invite.token) for invite in invites] == [None, None]

    def test_deleted_key_makes_no_invites(self, store: Store) -> None:
        """For a key that was deleted nothing is added, and its invites of before stay."""
        key, before, after = make_key(), make_invite(), make_invite()
        store.add_key(key)
        store.add_invites([before], key_id=key.id)
        store.delete_key(key.id, host=key.host, now=NOON)
        with pytest.raises(KeyUnknown):
            store.add_invites([after], key_id=key.id)
        assert store.find_invite(before.token) == before
        assert store.find_invite(after.token) is None

    def test_no_invite_appears_after_its_key_was_deleted(self, store: Store) -> None:
        """Of the threads that make invites with a key none succeeds once its deletion has returned."""
        key = make_key()
        store.add_key(key)
        deleted = threading.Event()
        added: list[Invite] = []

        def add_until_refused() -> int:
            late = 0
            while True:
                invite, began_late = make_invite(), deleted.is_set()
                try:
                    store.add_invites([invite], key_id=key.id)
                except KeyUnknown:
                    assert store.find_invite(invite.token) is None
                    return late
                added.append(invite)
                late += began_late

        def delete() -> int:
            wait_until(lambda: len(added) >= 20)
            assert store.delete_key(key.id, host=key.host, now=NOON)
            deleted.set()
            return 0

        outcomes = run_at_once([add_until_refused] * (THREADS - 1) + [delete])
        assert outcomes == [0] * THREADS
        assert [store.find_invite(invite.token) for invite in added] == added
