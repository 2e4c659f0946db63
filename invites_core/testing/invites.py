"""What every store of invites is held to."""

from __future__ import annotations

from functools import partial

import pytest

from invites_core.errors import InviteExists
from invites_core.invites import Invite
from invites_core.store import COUNTED_USES, InviteStore
from invites_core.testing.base import THREADS, BaseSuite, refused_without, run_at_once
from invites_core.testing.clock import NOON
from invites_core.testing.lists import ListTests, list_all
from invites_core.testing.records import SECOND, make_invite
from invites_core.testing.redemptions import RedemptionTests

__all__ = ["InviteStoreSuite"]


class InviteStoreSuite(RedemptionTests, ListTests, BaseSuite):
    """What an `InviteStore` promises. Override the fixture ``store``."""

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
        listed = {invite.token: invite for invite in list_all(store, limit=1_000)}
        # Not one by one: some storages read all they have for each.
        assert [listed.get(invite.token) for invite in invites] == invites
        assert [store.find_invite(invite.token) for invite in invites[::99]] == invites[::99]

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

    def test_uses_are_counted_or_refused(self, store: InviteStore) -> None:
        """A store that counts no uses refuses an invite of several before anything is added."""
        single, counted = make_invite(), make_invite(max_uses=3, uses=2)
        with refused_without(store, COUNTED_USES):
            store.add_invites([single, counted])
            assert store.find_invite(counted.token) == counted
        if store.find_invite(counted.token) is None:
            assert store.find_invite(single.token) is None

    def test_repeated_addition_leaves_alone_what_is_there(self, store: InviteStore) -> None:
        """With `if_absent`, those that are there stay as they are, and the missing ones are added."""
        there, missing = make_invite(), make_invite()
        store.add_invites([there])
        store.revoke_invite(there.token, by="admin", host=None, now=NOON)
        revoked = store.find_invite(there.token)
        store.add_invites([there, missing], if_absent=True)
        assert store.find_invite(there.token) == revoked
        assert store.find_invite(missing.token) == missing
        store.add_invites([there, missing], if_absent=True)
        listed = store.list_invites(there.host, now=NOON, limit=10)
        assert {invite.token for invite in listed.invites} == {there.token, missing.token}
        assert len(listed.invites) == 2

    def test_threads_that_repeat_an_addition_add_once(self, store: InviteStore) -> None:
        """Many threads that add the same invites if absent all succeed, and each invite is there once."""
        batch = [make_invite() for _ in range(5)]
        outcomes = run_at_once([partial(store.add_invites, batch, if_absent=True)] * THREADS)
        assert outcomes == [None] * THREADS
        listed = store.list_invites("example.com", now=NOON, limit=100)
        assert sorted(invite.token for invite in listed.invites) == sorted(invite.token for invite in batch)

    def test_pending_invite_is_revoked(self, store: InviteStore) -> None:
        """A revoked invite says by whom and since when."""
        invite = make_invite()
        store.add_invites([invite])
        revoked, now = store.revoke_invite(invite.token, by="admin", host=invite.host, now=NOON + SECOND)
        assert revoked is True
        assert now is not None
        assert (now.revoked_by, now.closed_at, now.state_at(NOON)) == ("admin", NOON + SECOND, "revoked")
        assert store.find_invite(invite.token) == now

    def test_invite_is_revoked_to_its_last_second(self, store: InviteStore) -> None:
        """An invite can be taken back in the second `expires_at`, and not in the next."""
        in_time, late = make_invite(expires_at=NOON), make_invite(expires_at=NOON)
        store.add_invites([in_time, late])
        assert store.revoke_invite(in_time.token, by="admin", host=None, now=NOON)[0] is True
        assert store.revoke_invite(late.token, by="admin", host=None, now=NOON + SECOND) == (False, late)

    @pytest.mark.parametrize(
        "invite",
        [
            pytest.param(make_invite(uses=1, closed_at=NOON), id="used"),
            pytest.param(make_invite(closed_at=NOON, revoked_by="somebody"), id="revoked"),
            pytest.param(make_invite(expires_at=NOON - SECOND), id="expired"),
        ],
    )
    def test_what_is_not_pending_is_not_revoked(self, store: InviteStore, invite: Invite) -> None:
        """An invite that is over stays as it is, and is given back."""
        store.add_invites([invite])
        assert store.revoke_invite(invite.token, by="admin", host=None, now=NOON) == (False, invite)
        assert store.find_invite(invite.token) == invite

    def test_unknown_invite_is_not_revoked(self, store: InviteStore) -> None:
        """There is nothing to revoke of an unknown token or, where a host is named, of another host's invite."""
        invite = make_invite()
        store.add_invites([invite])
        assert store.revoke_invite("x" * 24, by="admin", host=None, now=NOON) == (False, None)
        assert store.revoke_invite(invite.token, by="admin", host="example.org", now=NOON) == (False, None)
        assert store.find_invite(invite.token) == invite

    def test_one_thread_revokes_an_invite(self, store: InviteStore) -> None:
        """Of many threads that take the same invite back one is told that it did."""
        invite = make_invite()
        store.add_invites([invite])
        outcomes = run_at_once(
            [partial(store.revoke_invite, invite.token, by=str(n), host=None, now=NOON) for n in range(THREADS)]
        )
        won = [outcome[0] for outcome in outcomes if not isinstance(outcome, Exception)]
        assert sorted(won) == [False] * (THREADS - 1) + [True]
        found = store.find_invite(invite.token)
        assert found is not None
        assert found.revoked_by == str(won.index(True))
