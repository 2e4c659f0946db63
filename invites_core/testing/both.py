"""What a store is held to that holds keys and invites: neither a grant nor its invites are there alone."""

from __future__ import annotations

import threading
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from invites_core.errors import InviteExists, KeyUnknown
from invites_core.invites import Invite
from invites_core.store import Grant, GrantTaken, Store
from invites_core.testing.base import THREADS, BaseSuite, run_at_once, wait_until
from invites_core.testing.clock import NOON
from invites_core.testing.records import make_grant, make_invite, make_key

__all__ = ["StoreSuite"]


def make_invites(grant: Grant, created_at: datetime = NOON) -> list[Invite]:
    """Return the invites of a grant."""
    return [make_invite(token=token, created_at=created_at) for token in grant.tokens]


class StoreSuite(BaseSuite):
    """What a `Store` promises on top of both halves. Override the fixture ``store``."""

    @pytest.mark.parametrize("fields", [{}, {"limit": 5}, {"name": "a"}, {"limit": 5, "name": "a", "count": 3}])
    def test_grant_is_taken_with_its_invites(self, store: Store, fields: dict[str, Any]) -> None:
        """The invites of a grant that was taken are there, and its row is done."""
        key = make_key()
        store.add_key(key)
        grant = make_grant(key, **fields)
        invites = make_invites(grant)
        taken = store.add_granted(grant, invites)
        assert (taken.outcome, taken.tokens, taken.created_at) == ("taken", grant.tokens, NOON)
        assert [store.find_invite(invite.token) for invite in invites] == invites
        if grant.digest is not None:
            assert store.take_grant(grant) == GrantTaken(
                outcome="repeated", tokens=grant.tokens, created_at=NOON, done=True
            )

    def test_same_call_again_changes_nothing(self, store: Store) -> None:
        """A grant with an identity can be repeated with its own invites, as after an unknown outcome."""
        key = make_key()
        store.add_key(key)
        grant = make_grant(key, limit=5, name="a")
        invites = make_invites(grant)
        store.add_granted(grant, invites)
        repeated = GrantTaken(outcome="repeated", tokens=grant.tokens, created_at=NOON, done=True)
        assert store.add_granted(grant, invites) == repeated
        assert store.find_quota_taken(key.id, NOON) == 1

    def test_what_is_not_taken_adds_nothing(self, store: Store) -> None:
        """Of a repeat, a conflict and a spent quota no invite is added."""
        key = make_key()
        store.add_key(key)
        store.add_granted(first := make_grant(key, limit=1, name="a"), make_invites(first))
        for outcome, grant in (
            ("repeated", make_grant(key, limit=1, name="a")),
            ("conflict", make_grant(key, limit=1, name="a", fingerprint=b"o" * 32)),
            ("spent", make_grant(key, limit=1, name="b")),
            ("spent", make_grant(key, limit=1)),
        ):
            assert store.add_granted(grant, make_invites(grant)).outcome == outcome
            assert store.find_invite(grant.tokens[0]) is None
        assert store.find_quota_taken(key.id, NOON) == 1

    def test_taken_token_takes_no_grant(self, store: Store) -> None:
        """Where a token is there already neither the quota nor the row is touched, and no invite is added."""
        key, there = make_key(), make_invite()
        store.add_key(key)
        store.add_invites([there])
        grant = make_grant(key, count=2, limit=5, name="a")
        invites = [make_invite(token=grant.tokens[0]), make_invite(token=there.token, note="another")]
        with pytest.raises(InviteExists):
            store.add_granted(grant, invites)
        assert store.find_invite(grant.tokens[0]) is None
        assert store.find_invite(there.token) == there
        assert store.find_quota_taken(key.id, NOON) == 0
        assert store.take_grant(grant).outcome == "taken"

    def test_unknown_key_makes_no_invites(self, store: Store) -> None:
        """For a key that is not there nothing is added."""
        grant = make_grant(make_key(), count=2)
        with pytest.raises(KeyUnknown):
            store.add_granted(grant, make_invites(grant))
        assert [store.find_invite(token) for token in grant.tokens] == [None, None]

    def test_deleted_key_makes_no_invites(self, store: Store) -> None:
        """For a key that was deleted nothing is added, and its invites of before stay."""
        key = make_key()
        store.add_key(key)
        before, after = make_grant(key), make_grant(key)
        store.add_granted(before, make_invites(before))
        store.delete_key(key.id, host=key.host, now=NOON)
        with pytest.raises(KeyUnknown):
            store.add_granted(after, make_invites(after))
        assert store.find_invite(before.tokens[0]) is not None
        assert store.find_invite(after.tokens[0]) is None

    def test_threads_make_exactly_the_quota(self, store: Store) -> None:
        """Threads that make as many invites as they can make exactly the quota, together."""
        key = make_key()
        store.add_key(key)

        def make_all() -> list[str]:
            tokens: list[str] = []
            while True:
                grant = make_grant(key, limit=40)
                if store.add_granted(grant, make_invites(grant)).outcome == "spent":
                    return tokens
                tokens.extend(grant.tokens)

        outcomes = run_at_once([make_all] * THREADS)
        made = [token for outcome in outcomes if isinstance(outcome, list) for token in outcome]
        assert len(made) == 40
        listed = store.list_invites("example.com", now=NOON, limit=100).invites
        assert sorted(invite.token for invite in listed) == sorted(made)

    def test_one_thread_makes_the_invites_of_an_identity(self, store: Store) -> None:
        """Of many threads with one identity one makes invites, and all are given the same tokens."""
        key = make_key()
        store.add_key(key)
        grants = [make_grant(key, count=2, limit=50, name="a") for _ in range(THREADS)]
        outcomes = run_at_once([partial(store.add_granted, grant, make_invites(grant)) for grant in grants])
        taken = [outcome for outcome in outcomes if isinstance(outcome, GrantTaken)]
        assert sorted(one.outcome for one in taken) == ["repeated"] * (THREADS - 1) + ["taken"]
        [tokens] = {one.tokens for one in taken}
        listed = store.list_invites("example.com", now=NOON, limit=100).invites
        assert sorted(invite.token for invite in listed) == sorted(tokens)

    def test_no_invite_appears_after_its_key_was_deleted(self, store: Store) -> None:
        """Of the threads that make invites with a key none succeeds once its deletion has returned."""
        key = make_key()
        store.add_key(key)
        deleted = threading.Event()
        added: list[str] = []

        def add_until_refused() -> int:
            late = 0
            while True:
                grant, began_late = make_grant(key), deleted.is_set()
                try:
                    store.add_granted(grant, make_invites(grant))
                except KeyUnknown:
                    assert store.find_invite(grant.tokens[0]) is None
                    return late
                added.extend(grant.tokens)
                late += began_late

        def delete() -> int:
            wait_until(lambda: len(added) >= 20)
            assert store.delete_key(key.id, host=key.host, now=NOON)
            deleted.set()
            return 0

        outcomes = run_at_once([add_until_refused] * (THREADS - 1) + [delete])
        assert outcomes == [0] * THREADS
        assert all(store.find_invite(token) is not None for token in added)
