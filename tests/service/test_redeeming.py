"""Invites.redeem, release and redeeming: the rules on using invites."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from invites_core.errors import (
    IdempotencyConflict,
    InvalidHost,
    InvalidRequest,
    InviteExpired,
    InviteRevoked,
    InvitesError,
    InviteUnknown,
    InviteUsed,
    OutcomeUnknown,
    RedemptionReleased,
    StorageError,
    WrongRedeemer,
)
from invites_core.invites import Invite
from invites_core.service import Redeemed
from tests.helpers import NOON, SECOND, run_at_once
from tests.service.worlds import HOST, Faulty, World


class SignUpFailed(Exception):
    """What goes wrong while an invite is being redeemed."""


@pytest.fixture
def invite(world: World) -> Invite:
    """A plain invite."""
    return world.invites.create_for(HOST, source="command")


class TestRedeeming:
    """Invites.redeem."""

    def test_redemption_is_told_with_its_identity(self, world: World, invite: Invite) -> None:
        """A redemption gives back an id that was made for it, and the invite with its link, as it is now."""
        redeemed = world.invites.redeem(invite.token, redeemer="alice")
        assert len(redeemed.redemption_id) == 24
        assert redeemed.repeated is False
        assert redeemed.invite == world.invites.find(invite.token)
        assert redeemed.invite.landing_page == invite.landing_page
        assert redeemed.invite.state_at(NOON) == "used"

    def test_repeat_is_the_same_success(self, world: World, invite: Invite) -> None:
        """The same identity and redeemer again succeed, take no second use, and say that they repeat."""
        first = world.invites.redeem(invite.token, redeemer="alice", redemption_id="a-1")
        world.clock.advance(timedelta(days=365))
        again = world.invites.redeem(invite.token, redeemer="alice", redemption_id="a-1")
        assert first == Redeemed(redemption_id="a-1", invite=first.invite, repeated=False)
        assert again == Redeemed(redemption_id="a-1", invite=first.invite, repeated=True)

    @pytest.mark.parametrize(
        ("prepare", "error"),
        [
            pytest.param(lambda w, t: w.invites.redeem(t), InviteUsed, id="no-room"),
            pytest.param(lambda w, t: w.invites.revoke(t, by="admin"), InviteRevoked, id="revoked"),
            pytest.param(lambda w, _: w.clock.advance(timedelta(days=7) + SECOND), InviteExpired, id="expired"),
            pytest.param(
                lambda w, t: w.invites.redeem(t, redeemer="bob", redemption_id="x"), IdempotencyConflict, id="conflict"
            ),
            pytest.param(lambda w, t: w.invites.release(t, redemption_id="x"), RedemptionReleased, id="released"),
        ],
    )
    def test_refusal_says_why(
        self, world: World, invite: Invite, prepare: Callable[[World, str], object], error: type[InvitesError]
    ) -> None:
        """Each row of the table has an error of its own, and nothing changes."""
        prepare(world, invite.token)
        before = world.invites.find(invite.token)
        with pytest.raises(error):
            world.invites.redeem(invite.token, redeemer="alice", redemption_id="x")
        assert world.invites.find(invite.token) == before

    def test_invite_is_redeemed_in_its_last_second(self, world: World, invite: Invite) -> None:
        """The clock is cut to seconds: an invite is valid while `now <= expires_at`."""
        world.clock.advance(timedelta(days=7, milliseconds=999))
        assert world.invites.redeem(invite.token).invite.closed_at == NOON + timedelta(days=7)

    @pytest.mark.parametrize("token", ["", "x" * 24, "a/b" * 8, "\0" * 24, "\udce9" * 24, "x" * 256])
    def test_unknown_invite_is_not_redeemed(self, world: World, token: str) -> None:
        """What is no token of an invite is InviteUnknown, for every verb by token."""
        for call in (
            lambda: world.invites.redeem(token),
            lambda: world.invites.release(token, redemption_id="x"),
            lambda: world.invites.revoke(token, by="admin"),
            lambda: world.invites.list_redemptions(token),
            lambda: world.invites.get(token),
        ):
            with pytest.raises(InviteUnknown):
                call()

    def test_invite_of_another_host_is_unknown(self, world: World, invite: Invite) -> None:
        """Every verb by token is about the host that it names, in any spelling."""
        for call in (
            lambda host: world.invites.redeem(invite.token, host=host),
            lambda host: world.invites.release(invite.token, redemption_id="x", host=host),
            lambda host: world.invites.revoke(invite.token, by="admin", host=host),
            lambda host: world.invites.list_redemptions(invite.token, host=host),
        ):
            with pytest.raises(InviteUnknown):
                call("example.org")
            with pytest.raises(InvalidHost):
                call("not a host")
        assert world.invites.find(invite.token) == invite
        assert world.invites.redeem(invite.token, host="EXAMPLE.com.").repeated is False

    @pytest.mark.parametrize("host", [None, HOST])
    def test_invite_of_a_host_that_is_not_served_keeps_its_use(
        self, world: World, invite: Invite, host: str | None
    ) -> None:
        """When a host leaves the settings its invites are unknown, and lose nothing by being tried."""
        with pytest.raises(InviteUnknown):
            world.serving("example.org").invites.redeem(invite.token, host=host)
        assert world.invites.find(invite.token) == invite
        assert world.serving(HOST).invites.redeem(invite.token, host=host).repeated is False

    @pytest.mark.parametrize(
        ("redeemer", "error"),
        [("alice", None), ("ALICE", None), ("bob", WrongRedeemer), (None, WrongRedeemer), ("a@b", WrongRedeemer)],
    )
    def test_named_account_is_compared_after_normalising(
        self, world: World, redeemer: str | None, error: type[InvitesError] | None
    ) -> None:
        """An invite that names an account admits it in any spelling, and nobody else."""
        invite = world.invites.create_for(HOST, source="command", username="Alice")
        if error is None:
            assert world.invites.redeem(invite.token, redeemer=redeemer).invite.uses == 1
        else:
            with pytest.raises(error):
                world.invites.redeem(invite.token, redeemer=redeemer)
            assert world.invites.find(invite.token) == invite

    def test_state_is_told_before_the_wrong_redeemer(self, world: World) -> None:
        """An invite that is over says so to everybody."""
        invite = world.invites.create_for(HOST, source="command", username="alice")
        world.invites.revoke(invite.token, by="admin")
        with pytest.raises(InviteRevoked):
            world.invites.redeem(invite.token, redeemer="bob")

    @pytest.mark.parametrize("redemption_id", ["", "x" * 256, "a b", "é", "a\n", "\0", 7, None])
    def test_bad_identity_is_refused(self, world: World, invite: Invite, redemption_id: object) -> None:
        """An identity is 1 to 255 printable ASCII characters; without one, one is made, and none can be released."""
        if redemption_id is not None:
            with pytest.raises(InvalidRequest) as caught:
                world.invites.redeem(invite.token, redemption_id=redemption_id)  # type: ignore[arg-type]  # on purpose
            assert caught.value.field == "redemption_id"
        with pytest.raises(InvalidRequest):
            world.invites.release(invite.token, redemption_id=redemption_id)  # type: ignore[arg-type]  # on purpose
        assert world.invites.find(invite.token) == invite

    @pytest.mark.parametrize("redeemer", ["x" * 1024, "a\0", "\udce9", 7])
    def test_bad_redeemer_is_refused(self, world: World, invite: Invite, redeemer: object) -> None:
        """A redeemer is a text that can be stored everywhere."""
        with pytest.raises(InvalidRequest) as caught:
            world.invites.redeem(invite.token, redeemer=redeemer)  # type: ignore[arg-type]  # on purpose
        assert caught.value.field == "redeemer"

    def test_history_is_listed(self, world: World, invite: Invite) -> None:
        """Who used an invite, and when, is kept, with what was given back."""
        world.invites.redeem(invite.token, redeemer="alice", redemption_id="a")
        world.clock.advance(1)
        world.invites.release(invite.token, redemption_id="a")
        world.clock.advance(1)
        world.invites.redeem(invite.token, redeemer="bob", redemption_id="b")
        found = [
            (one.redeemer, one.redeemed_at, one.released_at) for one in world.invites.list_redemptions(invite.token)
        ]
        assert found == [("alice", NOON, NOON + SECOND), ("bob", NOON + 2 * SECOND, None)]

    def test_one_thread_redeems_an_invite(self, world: World, invite: Invite) -> None:
        """Of many threads one redeems an invite, and the others are told that it has been used."""
        outcomes = run_at_once([partial(world.invites.redeem, invite.token, redeemer=str(n)) for n in range(16)])
        assert sum(isinstance(outcome, Redeemed) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, InviteUsed) for outcome in outcomes) == 15


class TestUnknownOutcome:
    """A redemption whose answer was lost."""

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_same_call_resolves_it(self, world: World, invite: Invite, when: str) -> None:
        """After a fault the same identity again succeeds, with one use taken, whether the first had happened or not."""
        store = Faulty(world.invite_store)
        store.fail("redeem_invite", when)
        invites = world.through(world.key_store, store).invites
        with pytest.raises(StorageError):
            invites.redeem(invite.token, redeemer="alice", redemption_id="a")
        redeemed = invites.redeem(invite.token, redeemer="alice", redemption_id="a")
        assert redeemed.repeated is (when == "after")
        assert redeemed.invite.uses == 1

    def test_error_carries_the_identity_that_was_made(self, world: World, invite: Invite) -> None:
        """Where the caller gave no identity the error has the one to repeat with."""
        store = Faulty(world.invite_store)
        store.fail("redeem_invite", "after")
        invites = world.through(world.key_store, store).invites
        with pytest.raises(OutcomeUnknown) as caught:
            invites.redeem(invite.token, redeemer="alice")
        assert caught.value.redemption_id is not None
        again = invites.redeem(invite.token, redeemer="alice", redemption_id=caught.value.redemption_id)
        assert (again.repeated, again.invite.uses) == (True, 1)

    def test_unknown_release_is_repeated(self, world: World, invite: Invite) -> None:
        """A release whose answer was lost is repeated, and gives one use back."""
        store = Faulty(world.invite_store)
        store.fail("release_redemption", "after")
        invites = world.through(world.key_store, store).invites
        invites.redeem(invite.token, redemption_id="a")
        with pytest.raises(OutcomeUnknown):
            invites.release(invite.token, redemption_id="a")
        assert invites.release(invite.token, redemption_id="a") == invite


class TestRedeemingWhile:
    """The context manager."""

    def test_use_is_kept_where_all_went_well(self, world: World, invite: Invite) -> None:
        """What is done inside has the redemption, and afterwards the invite is used."""
        with world.invites.redeeming(invite.token, redeemer="alice") as redeemed:
            assert redeemed.invite.uses == 1
        assert world.invites.get(invite.token).state_at(NOON) == "used"

    @pytest.mark.parametrize("error", [SignUpFailed, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_use_is_given_back_on_any_exception(self, world: World, invite: Invite, error: type[BaseException]) -> None:
        """Whatever goes wrong inside comes out, and the invite can be used again, under another identity."""
        with pytest.raises(error), world.invites.redeeming(invite.token, redemption_id="a"):
            raise error
        assert world.invites.find(invite.token) == invite
        with pytest.raises(RedemptionReleased), world.invites.redeeming(invite.token, redemption_id="a"):
            raise AssertionError("a released redemption let somebody in")
        with world.invites.redeeming(invite.token):
            pass

    def test_nothing_is_done_inside_where_it_is_refused(self, world: World, invite: Invite) -> None:
        """A refusal is raised before what is inside, and gives nothing back that it did not take."""
        world.invites.redeem(invite.token)
        with pytest.raises(InviteUsed), world.invites.redeeming(invite.token):
            raise AssertionError("a used invite let somebody in")
        assert world.invites.get(invite.token).uses == 1

    def test_crash_inside_is_finished_by_the_same_identity(self, world: World, invite: Invite) -> None:
        """A use that a crash has left is there for the same identity, and for nobody else."""
        crashed = world.invites.redeeming(invite.token, redeemer="alice", redemption_id="a")
        crashed.__enter__()
        with pytest.raises(InviteUsed):
            world.invites.redeem(invite.token, redeemer="bob")
        with world.invites.redeeming(invite.token, redeemer="alice", redemption_id="a") as redeemed:
            assert redeemed.repeated is True
        assert world.invites.get(invite.token).uses == 1

    def test_repeat_that_fails_keeps_the_use(self, world: World, invite: Invite) -> None:
        """A run that found the redemption made does not release it: the one that made it may have let somebody in."""
        world.invites.redeem(invite.token, redemption_id="a")
        with pytest.raises(SignUpFailed), world.invites.redeeming(invite.token, redemption_id="a"):
            raise SignUpFailed
        assert world.invites.get(invite.token).uses == 1
        world.invites.release(invite.token, redemption_id="a")
        assert world.invites.find(invite.token) == invite

    def test_release_that_fails_is_noted_on_the_error(self, world: World, invite: Invite) -> None:
        """The error of what was inside comes out even where the use could not be given back, and says so."""
        store = Faulty(world.invite_store)
        store.fail("release_redemption", "before")
        invites = world.through(world.key_store, store).invites
        with pytest.raises(SignUpFailed) as caught, invites.redeeming(invite.token, redemption_id="a"):
            raise SignUpFailed
        assert caught.value.__notes__ == ["the redemption a was not released: the disk is full"]
        assert invites.release(invite.token, redemption_id="a") == invite
