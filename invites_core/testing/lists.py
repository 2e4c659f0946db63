"""What every store of invites is held to in lists, and in changes over many invites: revocation by source, purge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import pytest

from invites_core.errors import InvalidRequest
from invites_core.invites import Invite, InviteState
from invites_core.store import HISTORY, InvitePage, InviteStore, Sweep
from invites_core.testing.base import THREADS, refused_without, run_at_once
from invites_core.testing.clock import NOON
from invites_core.testing.records import SECOND, make_invite

__all__ = ["ListTests"]

HOST: Final = "example.com"
LATER: Final = NOON + timedelta(days=30)


def add_in_order(store: InviteStore, *rows: dict[str, Any]) -> list[Invite]:
    """Add an invite for each row of fields, one after the other, a second apart, and return them newest first."""
    invites = [make_invite(created_at=NOON + number * SECOND, **row) for number, row in enumerate(rows)]
    for invite in invites:
        store.add_invites([invite])
    return invites[::-1]


def add_states(store: InviteStore, **fields: Any) -> dict[str, Invite]:
    """Add an invite in each state as of `LATER`, and return them by state, newest first."""
    rows: dict[str, dict[str, Any]] = {
        "pending": {"expires_at": LATER},
        "expired": {"expires_at": LATER - SECOND},
        "revoked": {"expires_at": LATER, "closed_at": NOON, "revoked_by": "admin"},
        "used": {"expires_at": LATER, "uses": 1, "closed_at": NOON},
    }
    return dict(zip(reversed(rows), add_in_order(store, *({**row, **fields} for row in rows.values())), strict=True))


def read_pages(store: InviteStore, between: Callable[[], object] = lambda: None, **options: Any) -> list[InvitePage]:
    """Read a list to its end, doing something between each part and the next."""
    pages = [store.list_invites(HOST, **options)]
    while pages[-1].next is not None:
        assert len(pages) < 10_000, "a list does not end"
        between()
        pages.append(store.list_invites(HOST, cursor=pages[-1].next, **options))
    return pages


def list_all(store: InviteStore, **options: Any) -> list[Invite]:
    """Return a whole list, read a few at a time."""
    return [invite for page in read_pages(store, **{"now": LATER, "limit": 3, **options}) for invite in page.invites]


def sweep(step: Callable[[str | None], Sweep]) -> tuple[int, int]:
    """Make every step of a change; return how many were changed, and the most in one step."""
    changes: list[int] = []
    cursor: str | None = None
    while not changes or cursor is not None:
        assert len(changes) < 10_000, "a sweep does not end"
        done = step(cursor)
        changes.append(done.changed)
        cursor = done.next
    return sum(changes), max(changes)


class ListTests:
    """Lists and sweeps: a part of `InviteStoreSuite`."""

    def test_empty_store_lists_no_invites(self, store: InviteStore) -> None:
        """Without invites there is one part, empty, and no more."""
        assert store.list_invites(HOST, now=NOON, limit=1) == InvitePage(invites=(), next=None)

    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 1_000])
    def test_list_is_newest_first(self, store: InviteStore, limit: int) -> None:
        """However a list is cut, every invite of the host is there once, newest first, as it was added."""
        invites = add_in_order(store, *[{}] * 7)
        add_in_order(store, {"host": "example.org"})
        pages = read_pages(store, now=NOON, limit=limit)
        assert [invite for page in pages for invite in page.invites] == invites
        assert all(len(page.invites) <= limit for page in pages)

    def test_batch_is_listed_in_one_order(self, store: InviteStore) -> None:
        """Invites of one second are listed in an order that does not change from one reading to the next."""
        batch = [make_invite() for _ in range(20)]
        store.add_invites(batch)
        listed = list_all(store)
        assert sorted(one.token for one in listed) == sorted(one.token for one in batch)
        assert list_all(store, limit=7) == listed

    @pytest.mark.parametrize("state", ["pending", "expired", "revoked", "used"])
    def test_list_of_a_state_has_it_alone(self, store: InviteStore, state: InviteState) -> None:
        """A list of one state holds those that are in it at the time of the list."""
        one, other = add_states(store), add_states(store)
        assert list_all(store, state=state) == [other[state], one[state]]
        assert list_all(store, state=state, limit=1) == [other[state], one[state]]

    def test_list_without_a_state_has_all(self, store: InviteStore) -> None:
        """All states stand in one list, in order."""
        one, other = add_states(store), add_states(store)
        assert list_all(store) == [*other.values(), *one.values()]

    def test_state_changes_in_lists_at_the_last_second(self, store: InviteStore) -> None:
        """An invite is listed as pending in the second `expires_at`, and as expired in the next."""
        invite = make_invite(expires_at=NOON)
        store.add_invites([invite])
        for now, pending, expired in ((NOON, [invite], []), (NOON + SECOND, [], [invite])):
            assert list_all(store, now=now, state="pending") == pending
            assert list_all(store, now=now, state="expired") == expired

    def test_lists_follow_what_happens(self, store: InviteStore) -> None:
        """An invite moves from list to list as it is redeemed, released and revoked."""
        invite = make_invite()
        store.add_invites([invite])

        def find_lists() -> list[str]:
            states: tuple[InviteState, ...] = ("pending", "used", "revoked", "expired")
            return [state for state in states if list_all(store, now=NOON, state=state)]

        assert find_lists() == ["pending"]
        store.redeem_invite(invite.token, redemption_id="first", redeemer=None, username=None, host=None, now=NOON)
        assert find_lists() == ["used"]
        store.release_redemption(invite.token, redemption_id="first", host=None, now=NOON)
        assert find_lists() == ["pending"]
        store.revoke_invite(invite.token, by="admin", host=None, now=NOON)
        assert find_lists() == ["revoked"]

    def test_list_of_a_source_has_it_alone(self, store: InviteStore) -> None:
        """A list of one source holds its invites on this host, in every state or in one."""
        mine = add_states(store, source="api/token/HTwALnKL")
        add_states(store, source="api/token/HTwALnK")
        add_states(store, source="api/token/HTwALnKL", host="example.org")
        assert list_all(store, source="api/token/HTwALnKL") == list(mine.values())
        assert list_all(store, source="api/token/HTwALnKL", state="used") == [mine["used"]]
        assert list_all(store, source="api/token/HTwALnKL", state="pending") == [mine["pending"]]
        assert list_all(store, source="nobody") == []

    def test_cursor_holds_no_token(self, store: InviteStore) -> None:
        """What is given for the next part shows nothing that could be redeemed."""
        invites = add_in_order(store, *[{}] * 5)
        for page in read_pages(store, now=NOON, limit=1):
            assert not [invite for invite in invites if invite.token in (page.next or "")]

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", " 1", "1\n", "é", "\0", "9" * 400, "x" * 24])
    def test_cursor_of_nobody_is_refused(self, store: InviteStore, cursor: str) -> None:
        """What no list has given is InvalidRequest, and nothing worse."""
        add_in_order(store, {}, {})
        with pytest.raises(InvalidRequest) as caught:
            store.list_invites(HOST, now=NOON, limit=1, cursor=cursor)
        assert caught.value.field == "cursor"

    def test_new_invites_do_not_move_a_cursor(self, store: InviteStore) -> None:
        """Invites that come while a list is read make no other appear twice or be left out."""
        invites = add_in_order(store, *[{}] * 9)
        new = iter(range(100, 1_000))
        pages = read_pages(
            store,
            lambda: store.add_invites([make_invite(created_at=NOON + next(new) * SECOND)]),
            now=NOON,
            limit=2,
        )
        assert [invite for page in pages for invite in page.invites] == invites

    def test_purged_invites_do_not_move_a_cursor(self, store: InviteStore) -> None:
        """Invites that go while a list is read, even all that were read, leave the rest of the list as it is."""
        over = {"closed_at": NOON, "revoked_by": "admin"}
        invites = add_in_order(store, {}, {}, over, {}, over, {}, over, over)
        first = store.list_invites(HOST, now=NOON, limit=3)
        assert list(first.invites) == invites[:3]
        sweep(lambda cursor: store.purge_invites(before=NOON + SECOND, limit=100, cursor=cursor))
        second = store.list_invites(HOST, now=NOON, limit=100, cursor=first.next)
        assert list(second.invites) == [one for one in invites[3:] if one.revoked_by is None]

    def test_invite_that_comes_after_the_newest_was_purged_is_not_in_an_older_part(self, store: InviteStore) -> None:
        """A list that was begun before the newest invites went and others came goes on with older ones alone."""
        over = {"closed_at": NOON, "revoked_by": "admin"}
        invites = add_in_order(store, {}, {}, over, over)
        first = store.list_invites(HOST, now=NOON, limit=1)
        sweep(lambda cursor: store.purge_invites(before=NOON + SECOND, limit=100, cursor=cursor))
        store.add_invites([make_invite(created_at=NOON + 60 * SECOND) for _ in range(5)])
        rest = store.list_invites(HOST, now=NOON, limit=100, cursor=first.next)
        assert list(rest.invites) == invites[2:]

    def test_lists_stay_right_among_threads(self, store: InviteStore) -> None:
        """While threads add, redeem and purge, every invite that stays is listed exactly once, in order."""
        kept = add_in_order(store, *[{}] * 30)
        done: list[bool] = []

        def come_and_go() -> None:
            number = 0
            while not done:
                number += 1
                created_at = NOON + (100 + number) * SECOND
                store.add_invites([make_invite(created_at=created_at, closed_at=NOON, revoked_by="x")])
                store.purge_invites(before=NOON + SECOND, limit=10)

        def read() -> list[list[Invite]]:
            try:
                return [list_all(store, now=NOON, limit=4) for _ in range(5)]
            finally:
                done.append(True)

        outcomes = run_at_once([come_and_go] * 3 + [read])
        assert outcomes[:3] == [None] * 3
        lists = outcomes[3]
        assert isinstance(lists, list)
        for listed in lists:
            assert [invite for invite in listed if invite.revoked_by is None] == kept

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
    def test_pending_invites_of_a_source_are_revoked(self, store: InviteStore, limit: int) -> None:
        """All that a source has pending on a host are taken back and counted, so many a step at most.

        Used ones are marked, so that a use that is given back makes none pending again; no others are touched.
        """
        mine = [add_states(store, source="api/token/HTwALnKL") for _ in range(3)]
        others = [
            *add_states(store, source="api/token/HTwALnK").values(),
            *add_states(store, source="api/token/HTwALnKL", host="example.org").values(),
        ]

        def step(cursor: str | None) -> Sweep:
            return store.revoke_invites_from(
                "api/token/HTwALnKL", by="admin", host=HOST, now=LATER, limit=limit, cursor=cursor
            )

        changed, most = sweep(step)
        assert changed == 3
        assert most <= limit
        assert sweep(step) == (0, 0)
        for states in mine:
            found = {state: store.find_invite(invite.token) for state, invite in states.items()}
            revoked = replace(states["pending"], revoked_by="admin", closed_at=LATER)
            assert found == {**states, "pending": revoked, "used": replace(states["used"], revoked_by="admin")}
        assert [store.find_invite(invite.token) for invite in others] == others

    def test_used_but_open_invites_are_revoked_too(self, store: InviteStore) -> None:
        """An invite that has uses left is pending, however often it was used."""
        invite = make_invite(max_uses=None, uses=3)
        store.add_invites([invite])
        done = store.revoke_invites_from("command", by="admin", host=HOST, now=NOON, limit=10)
        assert done == Sweep(changed=1, next=None)

    def test_use_that_is_given_back_after_the_sweep_leaves_it_revoked(self, store: InviteStore) -> None:
        """A used invite of a source that was swept is revoked, not pending, once its use is given back."""
        invite = make_invite(expires_at=LATER)
        store.add_invites([invite])
        store.redeem_invite(
            invite.token, redemption_id="first", redeemer="alice", username="alice", host=None, now=NOON
        )
        store.revoke_invites_from("command", by="admin", host=HOST, now=NOON + SECOND, limit=10)
        released = store.release_redemption(invite.token, redemption_id="first", host=None, now=NOON + 2 * SECOND)
        assert released is not None
        assert (released.state_at(NOON + 2 * SECOND), released.revoked_by, released.uses) == ("revoked", "admin", 0)
        assert store.find_invite(invite.token) == released
        again = store.redeem_invite(
            invite.token, redemption_id="second", redeemer="bob", username="bob", host=None, now=NOON + 2 * SECOND
        )
        assert again.outcome == "refused"

    def test_threads_revoke_each_invite_once(self, store: InviteStore) -> None:
        """Threads that sweep the same source together take back what there was, and count it once."""
        store.add_invites([make_invite() for _ in range(40)])

        def sweep_all() -> int:
            return sweep(
                lambda cursor: store.revoke_invites_from(
                    "command", by="admin", host=HOST, now=NOON, limit=7, cursor=cursor
                )
            )[0]

        outcomes = run_at_once([sweep_all] * THREADS)
        assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == 40
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]

    @pytest.mark.parametrize("limit", [1, 2, 5, 100])
    def test_purge_removes_what_was_over_before_a_time(self, store: InviteStore, limit: int) -> None:
        """What was closed, or had expired, before a time is deleted and counted; what was over since then stays."""
        before = NOON + timedelta(days=1)
        gone = add_in_order(
            store,
            {"uses": 1, "closed_at": before - SECOND},
            {"revoked_by": "admin", "closed_at": before - SECOND},
            {"expires_at": before - SECOND},
            {"expires_at": before + SECOND, "uses": 1, "closed_at": NOON},
        )
        kept = add_in_order(
            store,
            {},
            {"expires_at": None},
            {"expires_at": before},
            {"uses": 1, "closed_at": before},
            {"expires_at": before - SECOND, "revoked_by": "admin", "closed_at": before},
        )
        changed, most = sweep(lambda cursor: store.purge_invites(before=before, limit=limit, cursor=cursor))
        assert changed == len(gone)
        assert most <= limit
        assert [store.find_invite(invite.token) for invite in gone] == [None] * len(gone)
        assert [store.find_invite(invite.token) for invite in kept] == kept
        assert sweep(lambda cursor: store.purge_invites(before=before, limit=limit, cursor=cursor)) == (0, 0)

    def test_redemptions_go_with_their_invite(self, store: InviteStore) -> None:
        """Of a purged invite nothing is left; the redemptions of others stay."""
        gone, kept = make_invite(), make_invite(max_uses=None)
        store.add_invites([gone, kept])
        for invite in (gone, kept):
            store.redeem_invite(
                invite.token, redemption_id="first", redeemer="alice", username="alice", host=None, now=NOON
            )
        assert sweep(lambda cursor: store.purge_invites(before=NOON + SECOND, limit=10, cursor=cursor))[0] == 1
        again = store.redeem_invite(
            gone.token, redemption_id="first", redeemer="alice", username="alice", host=None, now=NOON
        )
        assert (again.outcome, again.invite) == ("refused", None)
        with refused_without(store, HISTORY):
            assert list(store.list_redemptions(gone.token)) == []
            assert [one.redemption_id for one in store.list_redemptions(kept.token)] == ["first"]

    def test_threads_purge_each_invite_once(self, store: InviteStore) -> None:
        """Threads that purge together delete what there was, and count it once."""
        store.add_invites([make_invite(expires_at=NOON) for _ in range(40)])

        def purge() -> int:
            return sweep(lambda cursor: store.purge_invites(before=LATER, limit=7, cursor=cursor))[0]

        outcomes = run_at_once([purge] * THREADS)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == 40
        assert store.list_invites(HOST, now=NOON, limit=10).invites == ()

    def test_order_of_lists_is_that_of_time(self, store: InviteStore) -> None:
        """Newest first is by the time of creation, whatever came in the same call."""
        add_in_order(store, *[{}] * 10)
        times: list[datetime] = [invite.created_at for invite in list_all(store)]
        assert all(later >= earlier for later, earlier in pairwise(times))
