"""What every store of invites is held to in redemptions: each row of the table, and races for the last use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from invites_core.invites import Invite, Redemption
from invites_core.store import COUNTED_USES, HISTORY, InviteStore, RedeemResult
from invites_core.testing.base import THREADS, refused_without, run_at_once
from invites_core.testing.clock import NOON
from invites_core.testing.records import SECOND, make_invite

__all__ = ["RedemptionTests"]


def add(store: InviteStore, **fields: Any) -> Invite:
    """Add a plain invite with some fields set, and return it."""
    invite = make_invite(**fields)
    store.add_invites([invite])
    return invite


def redeem(
    store: InviteStore,
    invite: Invite,
    redemption_id: str = "first",
    *,
    redeemer: str | None = "alice",
    host: str | None = None,
    now: datetime = NOON,
) -> RedeemResult:
    """Redeem an invite by an account."""
    return store.redeem_invite(
        invite.token, redemption_id=redemption_id, redeemer=redeemer, username=redeemer, host=host, now=now
    )


def release(store: InviteStore, invite: Invite, redemption_id: str = "first", *, now: datetime = NOON) -> Invite | None:
    """Give a use back."""
    return store.release_redemption(invite.token, redemption_id=redemption_id, host=None, now=now)


class RedemptionTests:
    """Redeeming and releasing: a part of `InviteStoreSuite`."""

    def test_pending_invite_is_redeemed(self, store: InviteStore) -> None:
        """The last use closes an invite; the result and the store hold it as it is then."""
        invite = add(store)
        used = replace(invite, uses=1, closed_at=NOON + SECOND)
        assert redeem(store, invite, now=NOON + SECOND) == RedeemResult(outcome="redeemed", invite=used)
        assert store.find_invite(invite.token) == used
        assert used.state_at(NOON) == "used"

    def test_repeated_redemption_is_the_same_success(self, store: InviteStore) -> None:
        """The same identity and redeemer again take no second use."""
        invite = add(store, max_uses=None)
        first = redeem(store, invite)
        assert redeem(store, invite, now=NOON + SECOND) == replace(first, outcome="repeated")
        assert redeem(store, invite, "second").invite == replace(invite, uses=2)

    def test_repeat_succeeds_whatever_has_become_of_the_invite(self, store: InviteStore) -> None:
        """An invite that has been used up, has expired or was revoked since still answers a repeat."""
        used, expired, revoked = add(store), add(store, max_uses=None), add(store, max_uses=None)
        for invite in (used, expired, revoked):
            redeem(store, invite)
        store.revoke_invite(revoked.token, by="admin", host=None, now=NOON)
        after = NOON + 8 * 86_400 * SECOND
        outcomes = [redeem(store, invite, now=after).outcome for invite in (used, expired, revoked)]
        assert outcomes == ["repeated"] * 3

    @pytest.mark.parametrize("redeemer", ["bob", None])
    def test_identity_of_another_redeemer_conflicts(self, store: InviteStore, redeemer: str | None) -> None:
        """The same identity with another redeemer, or without one, changes nothing."""
        invite = add(store, max_uses=None)
        first = redeem(store, invite)
        assert redeem(store, invite, redeemer=redeemer) == RedeemResult(outcome="conflict", invite=first.invite)
        assert store.find_invite(invite.token) == first.invite

    def test_redeemer_need_not_be_told(self, store: InviteStore) -> None:
        """A redemption without a redeemer is repeated without one."""
        invite = add(store)
        outcomes = [redeem(store, invite, redeemer=redeemer).outcome for redeemer in (None, None, "alice")]
        assert outcomes == ["redeemed", "repeated", "conflict"]

    def test_identities_belong_to_their_invites(self, store: InviteStore) -> None:
        """Two invites can be redeemed with the same identity."""
        one, other = add(store), add(store)
        assert redeem(store, one).outcome == "redeemed"
        assert redeem(store, other, redeemer="bob").outcome == "redeemed"

    @pytest.mark.parametrize(
        ("redemption_id", "other"),
        [
            pytest.param("x" * 255, "x" * 254, id="long"),
            pytest.param("A", "a", id="case"),
            pytest.param("1", "01", id="number"),
            pytest.param("'; --", "' --", id="quotes"),
            pytest.param("~!/?&%", "~!/?&", id="signs"),
        ],
    )
    def test_identities_are_told_apart_to_the_letter(self, store: InviteStore, redemption_id: str, other: str) -> None:
        """Two identities that differ at all are two redemptions."""
        invite = add(store, max_uses=None)
        outcomes = [redeem(store, invite, each).outcome for each in (redemption_id, other, redemption_id, other)]
        assert outcomes == ["redeemed", "redeemed", "repeated", "repeated"]

    @pytest.mark.parametrize(
        "invite",
        [
            pytest.param(make_invite(uses=1, closed_at=NOON), id="no-room"),
            pytest.param(make_invite(closed_at=NOON, revoked_by="somebody"), id="revoked"),
            pytest.param(make_invite(max_uses=None, closed_at=NOON, revoked_by="x"), id="revoked-without-limit"),
            pytest.param(make_invite(expires_at=NOON - SECOND), id="expired"),
            pytest.param(make_invite(expires_at=NOON - SECOND, max_uses=None), id="expired-without-limit"),
            pytest.param(make_invite(username="bob"), id="another-account-to-create"),
            pytest.param(make_invite(kind="reset", username="bob", registration=False), id="another-account-to-reset"),
        ],
    )
    def test_refused_redemption_changes_nothing(self, store: InviteStore, invite: Invite) -> None:
        """What does not admit a redemption stays as it is, and nothing is kept of the attempt."""
        store.add_invites([invite])
        assert redeem(store, invite) == RedeemResult(outcome="refused", invite=invite)
        assert store.find_invite(invite.token) == invite
        assert redeem(store, invite, redeemer="carol").outcome == "refused"
        with refused_without(store, HISTORY):
            assert list(store.list_redemptions(invite.token)) == []

    def test_refused_identity_can_be_used_when_there_is_room(self, store: InviteStore) -> None:
        """A refusal is no redemption: the same identity succeeds once a use was given back."""
        invite = add(store)
        redeem(store, invite)
        assert redeem(store, invite, "second", redeemer="bob").outcome == "refused"
        release(store, invite)
        assert redeem(store, invite, "second", redeemer="bob").outcome == "redeemed"

    def test_unknown_invite_is_not_redeemed(self, store: InviteStore) -> None:
        """There is nothing to redeem of an unknown token or, where a host is named, of another host's invite."""
        invite, nothing = add(store), RedeemResult(outcome="refused", invite=None)
        assert redeem(store, make_invite()) == nothing
        assert redeem(store, invite, host="example.org") == nothing
        assert store.find_invite(invite.token) == invite
        assert redeem(store, invite, host="example.com").outcome == "redeemed"
        assert redeem(store, invite, host="example.org") == nothing

    def test_invite_is_valid_to_its_last_second(self, store: InviteStore) -> None:
        """An invite is redeemed in the second `expires_at`, and not in the next."""
        one, other = add(store, expires_at=NOON), add(store, expires_at=NOON)
        assert redeem(store, other, now=NOON + SECOND).outcome == "refused"
        assert redeem(store, one, now=NOON).outcome == "redeemed"
        assert redeem(store, other, now=NOON).outcome == "redeemed"

    def test_invite_that_never_expires_is_redeemed_late(self, store: InviteStore) -> None:
        """Without an expiry there is no last second."""
        invite = add(store, expires_at=None)
        assert redeem(store, invite, now=NOON + 100 * 366 * 86_400 * SECOND).outcome == "redeemed"

    @pytest.mark.parametrize(
        ("fields", "redeemer", "outcome"),
        [
            pytest.param({"username": "alice"}, "alice", "redeemed", id="account-to-create"),
            pytest.param({"username": "alice"}, "bob", "refused", id="another-account"),
            pytest.param({"username": "alice"}, None, "refused", id="no-account"),
            pytest.param({"username": "alice", "kind": "reset"}, "alice", "redeemed", id="account-to-reset"),
            pytest.param({"username": "alice", "kind": "reset"}, "bob", "refused", id="reset-by-another"),
            pytest.param({"username": "alice", "kind": "roster"}, "bob", "redeemed", id="inviter-is-not-compared"),
            pytest.param({"username": "alice", "kind": "roster"}, None, "redeemed", id="inviter-and-nobody"),
            pytest.param({}, None, "redeemed", id="anybody"),
        ],
    )
    def test_username_binds_the_redeemer(
        self, store: InviteStore, fields: dict[str, Any], redeemer: str | None, outcome: str
    ) -> None:
        """Who creates or resets a named account has to be that account; a roster invite names its inviter."""
        assert redeem(store, add(store, **fields), redeemer=redeemer).outcome == outcome

    def test_redeemer_is_kept_as_it_is(self, store: InviteStore) -> None:
        """The redeemer is what was said, and the normalised name is what is compared."""
        invite = add(store, username="alice")
        result = store.redeem_invite(
            invite.token, redemption_id="first", redeemer="Alice", username="alice", host=None, now=NOON
        )
        assert result.outcome == "redeemed"
        with refused_without(store, HISTORY):
            assert [one.redeemer for one in store.list_redemptions(invite.token)] == ["Alice"]

    def test_several_uses_are_counted(self, store: InviteStore) -> None:
        """An invite of three uses is redeemed three times, and closed by the third."""
        with refused_without(store, COUNTED_USES):
            invite = add(store, max_uses=3)
            results = [redeem(store, invite, str(number), now=NOON + number * SECOND) for number in range(4)]
            assert [result.outcome for result in results] == ["redeemed"] * 3 + ["refused"]
            invites = [result.invite for result in results if result.invite is not None]
            assert [one.uses for one in invites] == [1, 2, 3, 3]
            assert [one.closed_at for one in invites] == [None, None, NOON + 2 * SECOND, NOON + 2 * SECOND]

    def test_invite_without_limit_is_never_used_up(self, store: InviteStore) -> None:
        """Uses without limit are counted, and close nothing."""
        invite = add(store, max_uses=None)
        for number in range(20):
            assert redeem(store, invite, str(number)).outcome == "redeemed"
        assert store.find_invite(invite.token) == replace(invite, uses=20)

    def test_released_use_is_given_back(self, store: InviteStore) -> None:
        """A released invite is as if it had not been redeemed, and somebody else can redeem it."""
        invite = add(store)
        redeem(store, invite)
        assert release(store, invite, now=NOON + SECOND) == invite
        assert store.find_invite(invite.token) == invite
        assert redeem(store, invite, "second", redeemer="bob").outcome == "redeemed"

    def test_second_release_gives_nothing_back(self, store: InviteStore) -> None:
        """Releasing twice is releasing once, whoever has redeemed the invite in between."""
        invite = add(store)
        redeem(store, invite)
        release(store, invite)
        assert release(store, invite) == invite
        used = redeem(store, invite, "second").invite
        assert release(store, invite) == used
        assert store.find_invite(invite.token) == used

    @pytest.mark.parametrize("redeemer", ["alice", "bob", None])
    def test_released_identity_never_redeems(self, store: InviteStore, redeemer: str | None) -> None:
        """Released is final, for every redeemer."""
        invite = add(store)
        redeem(store, invite)
        release(store, invite)
        assert redeem(store, invite, redeemer=redeemer) == RedeemResult(outcome="released", invite=invite)
        assert store.find_invite(invite.token) == invite

    def test_release_before_its_redemption_wins(self, store: InviteStore) -> None:
        """An identity that is not known is recorded as released, so that a delayed redemption loses."""
        invite = add(store)
        assert release(store, invite) == invite
        assert redeem(store, invite).outcome == "released"
        assert release(store, invite) == invite
        assert store.find_invite(invite.token) == invite
        assert redeem(store, invite, "second").outcome == "redeemed"

    def test_unknown_invite_is_not_released(self, store: InviteStore) -> None:
        """There is nothing to release of an unknown token or, where a host is named, of another host's invite."""
        invite = add(store)
        used = redeem(store, invite).invite
        assert release(store, make_invite()) is None
        released = store.release_redemption(invite.token, redemption_id="first", host="example.org", now=NOON)
        assert released is None
        assert store.find_invite(invite.token) == used

    def test_release_of_an_expired_invite_leaves_it_expired(self, store: InviteStore) -> None:
        """A use that is given back after the expiry helps nobody."""
        invite = add(store, expires_at=NOON)
        redeem(store, invite)
        released = release(store, invite, now=NOON + SECOND)
        assert released == invite
        assert released.state_at(NOON + SECOND) == "expired"
        assert redeem(store, invite, "second", now=NOON + SECOND).outcome == "refused"

    def test_release_of_a_revoked_invite_leaves_it_revoked(self, store: InviteStore) -> None:
        """A use of a revoked invite can be given back, and the invite stays closed since it was revoked."""
        invite = add(store, max_uses=None)
        redeem(store, invite)
        store.revoke_invite(invite.token, by="admin", host=None, now=NOON + SECOND)
        released = release(store, invite, now=NOON + 2 * SECOND)
        assert released == replace(invite, revoked_by="admin", closed_at=NOON + SECOND)
        assert redeem(store, invite, "second").outcome == "refused"

    def test_history_is_kept(self, store: InviteStore) -> None:
        """Every redemption is there with redeemer and times, oldest first; one that came after its release as well."""
        invite, other = add(store, max_uses=None), add(store)
        with refused_without(store, HISTORY):
            assert list(store.list_redemptions(invite.token)) == []
            redeem(store, invite, "z", now=NOON)
            redeem(store, invite, "a", redeemer="bob", now=NOON + 3 * SECOND)
            redeem(store, invite, "b", redeemer=None, now=NOON + 3 * SECOND)
            release(store, invite, "early", now=NOON + SECOND)
            redeem(store, invite, "early", now=NOON + 4 * SECOND)
            release(store, invite, "z", now=NOON + 5 * SECOND)
            release(store, invite, "z", now=NOON + 6 * SECOND)
            redeem(store, other)
            history = [
                ("z", "alice", NOON, NOON + 5 * SECOND),
                ("early", None, None, NOON + SECOND),
                ("a", "bob", NOON + 3 * SECOND, None),
                ("b", None, NOON + 3 * SECOND, None),
            ]
            assert list(store.list_redemptions(invite.token)) == [
                Redemption(
                    token=invite.token, redemption_id=name, redeemer=redeemer, redeemed_at=at, released_at=released
                )
                for name, redeemer, at, released in history
            ]
            assert list(store.list_redemptions("x" * 24)) == []

    def test_one_thread_redeems_an_invite(self, store: InviteStore) -> None:
        """Of many threads that redeem the same invite one succeeds."""
        for _ in range(5):
            invite = add(store)
            outcomes = run_at_once([partial(redeem, store, invite, str(n), redeemer=str(n)) for n in range(THREADS)])
            assert count(outcomes) == {"redeemed": 1, "refused": THREADS - 1}
            assert store.find_invite(invite.token) == replace(invite, uses=1, closed_at=NOON)

    def test_one_thread_redeems_an_identity(self, store: InviteStore) -> None:
        """Of many threads that repeat one redemption one makes it, and all succeed with one use."""
        invite = add(store, max_uses=None)
        outcomes = run_at_once([partial(redeem, store, invite)] * THREADS)
        assert count(outcomes) == {"redeemed": 1, "repeated": THREADS - 1}
        assert store.find_invite(invite.token) == replace(invite, uses=1)

    def test_threads_take_as_many_uses_as_there_are(self, store: InviteStore) -> None:
        """Of many threads as many succeed as there are uses."""
        with refused_without(store, COUNTED_USES):
            invite = add(store, max_uses=5)
            outcomes = run_at_once([partial(redeem, store, invite, str(n)) for n in range(THREADS)])
            assert count(outcomes) == {"redeemed": 5, "refused": THREADS - 5}

    def test_one_thread_gives_a_use_back(self, store: InviteStore) -> None:
        """Many threads that release one redemption give one use back."""
        invite = add(store, max_uses=None)
        redeem(store, invite)
        redeem(store, invite, "second")
        outcomes = run_at_once([partial(release, store, invite)] * THREADS)
        assert outcomes == [replace(invite, uses=1)] * THREADS

    def test_redemption_and_release_end_alike_in_any_order(self, store: InviteStore) -> None:
        """Where redemptions of one identity race with its release, the use is given back in the end."""
        for _ in range(5):
            invite = add(store)
            calls: list[Callable[[], object]] = [partial(redeem, store, invite)] * (THREADS - 1)
            calls.append(partial(release, store, invite))
            outcomes = run_at_once(calls)
            assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
            assert store.find_invite(invite.token) == invite
            assert redeem(store, invite).outcome == "released"

    def test_invite_is_redeemed_or_revoked(self, store: InviteStore) -> None:
        """Where a redemption races with a revocation one of them wins."""
        for _ in range(10):
            invite = add(store)
            redeemed, revoked = run_at_once([partial(wins, store, invite), partial(revokes, store, invite)])
            assert (redeemed, revoked) in ((True, False), (False, True))
            found = store.find_invite(invite.token)
            assert found is not None
            assert found.state_at(NOON) == ("used" if redeemed else "revoked")


def wins(store: InviteStore, invite: Invite) -> bool:
    """Redeem an invite, and tell whether this call did."""
    return redeem(store, invite).outcome == "redeemed"


def revokes(store: InviteStore, invite: Invite) -> bool:
    """Revoke an invite, and tell whether this call did."""
    return store.revoke_invite(invite.token, by="admin", host=None, now=NOON)[0]


def count(outcomes: list[RedeemResult | Exception]) -> dict[str, int]:
    """Count results by outcome, and errors by class."""
    names = [one.outcome if isinstance(one, RedeemResult) else type(one).__name__ for one in outcomes]
    return {name: names.count(name) for name in set(names)}
