"""What every store of keys is held to in quotas and idempotent creations."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from invites_core.errors import KeyUnknown
from invites_core.keys import ApiKey
from invites_core.store import GrantTaken, KeyStore, QuotaWindow
from invites_core.testing.base import THREADS, run_at_once
from invites_core.testing.clock import NOON
from invites_core.testing.records import SECOND, make_grant, make_key

__all__ = ["GrantTests"]

DAY = timedelta(days=1)


def add_key(store: KeyStore) -> ApiKey:
    """Add a plain key, and return it."""
    key = make_key()
    store.add_key(key)
    return key


class GrantTests:
    """Quotas and idempotency rows: a part of `KeyStoreSuite`."""

    def test_grant_without_bounds_takes_nothing(self, store: KeyStore) -> None:
        """For a key without quota, and a request without identity, the grant is taken every time."""
        grant = make_grant(add_key(store), count=3)
        expected = GrantTaken(outcome="taken", tokens=grant.tokens, created_at=NOON)
        assert [store.take_grant(grant), store.take_grant(grant)] == [expected, expected]

    @pytest.mark.parametrize("fields", [{}, {"limit": 5}, {"name": "a"}, {"limit": 5, "name": "a"}])
    def test_unknown_key_takes_no_grant(self, store: KeyStore, fields: dict[str, Any]) -> None:
        """For a key that is not there, or was deleted, nothing is taken, not even a repeat."""
        with pytest.raises(KeyUnknown):
            store.take_grant(make_grant(make_key(), **fields))
        key = add_key(store)
        grant = make_grant(key, **fields)
        store.take_grant(grant)
        store.delete_key(key.id, host=key.host, now=NOON)
        with pytest.raises(KeyUnknown):
            store.take_grant(grant)

    def test_quota_is_taken_to_its_last_unit(self, store: KeyStore) -> None:
        """A quota gives what is left of it and no more, and tells how much was taken."""
        key = add_key(store)
        for taken in range(3):
            assert store.find_quota_taken(key.id, NOON) == taken
            assert store.take_grant(make_grant(key, limit=3)).outcome == "taken"
        spent = store.take_grant(make_grant(key, limit=3))
        assert (spent.outcome, spent.tokens, spent.done) == ("spent", (), False)
        assert store.find_quota_taken(key.id, NOON) == 3

    def test_several_units_are_taken_all_or_none(self, store: KeyStore) -> None:
        """A request for more than is left takes nothing, and a smaller one still fits."""
        key = add_key(store)
        assert store.take_grant(make_grant(key, count=3, limit=5)).outcome == "taken"
        assert store.take_grant(make_grant(key, count=3, limit=5)).outcome == "spent"
        assert store.find_quota_taken(key.id, NOON) == 3
        assert store.take_grant(make_grant(key, count=2, limit=5)).outcome == "taken"
        assert store.find_quota_taken(key.id, NOON) == 5

    def test_first_request_is_within_the_quota_too(self, store: KeyStore) -> None:
        """Where nothing was taken yet, more than the whole quota is not taken either."""
        key = add_key(store)
        assert store.take_grant(make_grant(key, count=6, limit=5)).outcome == "spent"
        assert store.find_quota_taken(key.id, NOON) == 0
        assert store.take_grant(make_grant(key, count=5, limit=5)).outcome == "taken"

    def test_next_window_begins_with_nothing_taken(self, store: KeyStore) -> None:
        """What was taken in a window counts for nothing in the next one, where the limit holds again."""
        key, tomorrow = add_key(store), QuotaWindow(start=NOON + DAY, limit=2)
        assert store.take_grant(make_grant(key, count=2, limit=2)).outcome == "taken"
        assert store.find_quota_taken(key.id, NOON + DAY) == 0
        grants = [make_grant(key, window=tomorrow, now=NOON + DAY, count=count) for count in (3, 2, 1)]
        assert [store.take_grant(grant).outcome for grant in grants] == ["spent", "taken", "spent"]
        assert store.find_quota_taken(key.id, NOON + DAY) == 2

    def test_window_does_not_go_back(self, store: KeyStore) -> None:
        """A node whose clock is behind takes from the later window: never is more allowed than in one of them."""
        key = add_key(store)
        store.take_grant(make_grant(key, count=2, window=QuotaWindow(start=NOON + DAY, limit=3)))
        assert store.take_grant(make_grant(key, limit=3)).outcome == "taken"
        assert store.take_grant(make_grant(key, limit=3)).outcome == "spent"
        late = make_grant(key, window=QuotaWindow(start=NOON + DAY, limit=3))
        assert store.take_grant(late).outcome == "spent"

    def test_limit_is_that_of_the_grant(self, store: KeyStore) -> None:
        """When a quota is changed, what was taken before counts against the new one."""
        key = add_key(store)
        store.take_grant(make_grant(key, count=5, limit=5))
        assert store.take_grant(make_grant(key, limit=3)).outcome == "spent"
        assert store.take_grant(make_grant(key, limit=6)).outcome == "taken"

    def test_keys_have_quotas_of_their_own(self, store: KeyStore) -> None:
        """What one key takes is not taken from another."""
        one, other = add_key(store), add_key(store)
        store.take_grant(make_grant(one, limit=1))
        assert store.find_quota_taken(other.id, NOON) == 0
        assert store.take_grant(make_grant(other, limit=1)).outcome == "taken"

    def test_threads_take_no_more_than_the_quota(self, store: KeyStore) -> None:
        """Threads that take as much as they can take exactly the quota, together."""
        key = add_key(store)

        def take_all(count: int) -> int:
            taken = 0
            while store.take_grant(make_grant(key, count=count, limit=50)).outcome == "taken":
                taken += count
            return taken

        outcomes = run_at_once([partial(take_all, 1 + number % 3) for number in range(THREADS)])
        assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == 50
        assert store.find_quota_taken(key.id, NOON) == 50

    def test_repeated_grant_takes_nothing(self, store: KeyStore) -> None:
        """The same identity again gives the tokens and the time of the first attempt, and costs no unit."""
        key = add_key(store)
        first = make_grant(key, count=2, limit=3, name="a")
        assert store.take_grant(first).outcome == "taken"
        later = make_grant(key, count=2, limit=3, name="a", now=NOON + SECOND)
        expected = GrantTaken(outcome="repeated", tokens=first.tokens, created_at=NOON)
        assert store.take_grant(later) == expected
        store.finish_grant(later)
        assert store.take_grant(later) == replace(expected, done=True)
        assert store.find_quota_taken(key.id, NOON) == 2

    def test_repeat_is_answered_when_the_quota_is_spent(self, store: KeyStore) -> None:
        """The row decides before the quota does."""
        key = add_key(store)
        grant = make_grant(key, limit=1, name="a")
        store.take_grant(grant)
        assert store.take_grant(make_grant(key, limit=1, name="b")).outcome == "spent"
        assert store.take_grant(grant).outcome == "repeated"

    def test_refused_grant_leaves_no_row(self, store: KeyStore) -> None:
        """An identity that was refused for the quota can be used in the next window."""
        key = add_key(store)
        store.take_grant(make_grant(key, limit=1))
        refused = make_grant(key, limit=1, name="a")
        assert store.take_grant(refused).outcome == "spent"
        tomorrow = replace(refused, window=QuotaWindow(start=NOON + DAY, limit=1), now=NOON + DAY)
        assert store.take_grant(tomorrow).outcome == "taken"

    def test_identity_of_another_request_conflicts(self, store: KeyStore) -> None:
        """The same identity with another fingerprint changes nothing, done or not."""
        key = add_key(store)
        grant = make_grant(key, limit=9, name="a")
        store.take_grant(grant)
        other = make_grant(key, limit=9, name="a", fingerprint=b"o" * 32)
        assert store.take_grant(other).outcome == "conflict"
        store.finish_grant(grant)
        assert store.take_grant(other).outcome == "conflict"
        assert store.take_grant(grant) == GrantTaken(
            outcome="repeated", tokens=grant.tokens, created_at=NOON, done=True
        )
        assert store.find_quota_taken(key.id, NOON) == 1

    def test_identities_belong_to_their_keys(self, store: KeyStore) -> None:
        """Two keys can use the same identity, and to finish one's creation does not finish the other's."""
        one, other = make_grant(add_key(store), name="a"), make_grant(add_key(store), name="a")
        assert store.take_grant(one).outcome == "taken"
        assert store.take_grant(other).outcome == "taken"
        store.finish_grant(one)
        assert store.take_grant(one).done is True
        assert store.take_grant(other).done is False

    def test_row_counts_to_the_last_second_of_its_time(self, store: KeyStore) -> None:
        """A row made at `expired_before` still counts; one made before it does not, and is replaced."""
        key = add_key(store)
        old = make_grant(key, name="a")
        store.take_grant(old)
        store.finish_grant(old)
        assert store.take_grant(make_grant(key, name="a", expired_before=NOON)).outcome == "repeated"
        new = make_grant(key, name="a", now=NOON + 8 * DAY, expired_before=NOON + DAY)
        taken = GrantTaken(outcome="taken", tokens=new.tokens, created_at=new.now)
        assert store.take_grant(new) == taken
        assert store.take_grant(new) == replace(taken, outcome="repeated")

    def test_finishing_what_is_not_there_does_nothing(self, store: KeyStore) -> None:
        """A grant without identity, or of which nothing is kept, can be finished; no row comes of it."""
        key = add_key(store)
        store.finish_grant(make_grant(key))
        store.finish_grant(make_grant(key, name="a"))
        assert store.take_grant(make_grant(key, name="a")).outcome == "taken"

    def test_purge_removes_old_rows_alone(self, store: KeyStore) -> None:
        """Rows made before a time are deleted and counted; what was taken of the quota stays taken."""
        key = add_key(store)
        old, new = make_grant(key, limit=9, name="old"), make_grant(key, limit=9, name="new", now=NOON + SECOND)
        store.take_grant(old)
        store.take_grant(new)
        assert store.purge_grants(before=NOON) == 0
        assert store.purge_grants(before=NOON + SECOND) == 1
        assert store.purge_grants(before=NOON + SECOND) == 0
        assert store.find_quota_taken(key.id, NOON) == 2
        assert store.take_grant(new).outcome == "repeated"
        assert store.take_grant(old).outcome == "taken"

    def test_deleted_key_takes_its_quota_and_rows_with_it(self, store: KeyStore) -> None:
        """Of a deleted key only the mark stays; what belongs to others is left alone."""
        key, other = add_key(store), add_key(store)
        for each in (key, other):
            store.take_grant(make_grant(each, limit=9, name="a"))
        store.delete_key(key.id, host=key.host, now=NOON)
        assert store.find_quota_taken(key.id, NOON) == 0
        assert store.find_quota_taken(other.id, NOON) == 1
        assert store.purge_grants(before=NOON + SECOND) == 1

    def test_one_thread_takes_an_identity(self, store: KeyStore) -> None:
        """Of many threads with one identity one takes the grant, and the others are given its tokens."""
        key = add_key(store)
        grants = [make_grant(key, limit=50, name="a") for _ in range(THREADS)]
        outcomes = run_at_once([partial(store.take_grant, grant) for grant in grants])
        taken = [outcome for outcome in outcomes if isinstance(outcome, GrantTaken)]
        assert sorted(one.outcome for one in taken) == ["repeated"] * (THREADS - 1) + ["taken"]
        [tokens] = {one.tokens for one in taken}
        assert tokens == next(grant.tokens for grant, one in zip(grants, taken, strict=True) if one.outcome == "taken")
        assert store.find_quota_taken(key.id, NOON) == 1
