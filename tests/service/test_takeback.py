"""Lists, revocation, purge, and a key that is deleted with all that it made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from invites_core.errors import (
    InvalidHost,
    InvalidKey,
    InvalidRequest,
    InviteExpired,
    InviteRevoked,
    InviteUnknown,
    InviteUsed,
    KeyUnknown,
    OutcomeUnknown,
    StorageError,
)
from invites_core.keys import KeyPolicy, Quota
from invites_core.service import delete_key_with_invites
from tests.helpers import NOON, SECOND, run_at_once, wait_until
from tests.service.worlds import HOST, Faulty, World


def refuse_to_sleep(seconds: float) -> None:
    raise AssertionError(f"one store, and it waits {seconds} s")


def no_sleep(seconds: float) -> None:
    """Do not wait: nothing runs beside this."""


class TestLists:
    """Invites.list."""

    def test_list_has_links_and_takes_any_spelling(self, world: World) -> None:
        """Listed invites are as they were returned when they were made, newest first."""
        made = [world.invites.create_for("bücher.example", source="command") for _ in range(3)]
        page = world.invites.list("XN--BCHER-KVA.example.", limit=2)
        assert list(page.invites) == made[:0:-1]
        following = world.invites.list("bücher.example", limit=2, cursor=page.next)
        assert (list(following.invites), following.next) == (made[:1], None)

    def test_state_is_that_of_the_clock(self, world: World) -> None:
        """What has expired by now is not listed as pending."""
        invite = world.invites.create_for(HOST, source="command")
        assert world.invites.list(HOST, state="pending").invites == (invite,)
        world.clock.advance(timedelta(days=7) + SECOND)
        assert world.invites.list(HOST, state="pending").invites == ()
        assert world.invites.list(HOST, state="expired").invites == (invite,)

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"state": "open"}, "state"),
            ({"state": ""}, "state"),
            ({"limit": 0}, "limit"),
            ({"limit": 1001}, "limit"),
            ({"limit": True}, "limit"),
            ({"limit": "5"}, "limit"),
            ({"source": ""}, "source"),
            ({"source": "\udce9"}, "source"),
            ({"source": "a\0"}, "source"),
            ({"cursor": "x"}, "cursor"),
            ({"cursor": "9" * 30}, "cursor"),
            ({"cursor": ""}, "cursor"),
        ],
    )
    def test_bad_option_is_refused(self, world: World, options: dict[str, object], field: str) -> None:
        """What no list can be asked for is InvalidRequest with its field."""
        with pytest.raises(InvalidRequest) as caught:
            world.invites.list(HOST, **options)  # type: ignore[arg-type]  # on purpose
        assert caught.value.field == field

    def test_bad_host_is_refused(self, world: World) -> None:
        """What is no host name has no list."""
        with pytest.raises(InvalidHost):
            world.invites.list("not a host")


class TestRevoking:
    """Invites.revoke and revoke_from."""

    def test_pending_invite_is_taken_back(self, world: World) -> None:
        """A revoked invite says by whom and since when, with its link, and stays so."""
        invite = world.invites.create_for(HOST, source="command")
        world.clock.advance(5)
        revoked = world.invites.revoke(invite.token, by="admin", host="EXAMPLE.com")
        assert (revoked.revoked_by, revoked.closed_at) == ("admin", NOON + 5 * SECOND)
        assert revoked.state_since(world.clock.now) == NOON + 5 * SECOND
        assert world.invites.find(invite.token) == revoked
        with pytest.raises(InviteRevoked):
            world.invites.revoke(invite.token, by="another")
        assert world.invites.find(invite.token) == revoked

    def test_what_is_over_raises_its_state(self, world: World) -> None:
        """A used invite is used, and an expired one expired; neither is changed."""
        used, expired = (world.invites.create_for(HOST, source="command") for _ in range(2))
        world.invites.redeem(used.token)
        world.clock.advance(timedelta(days=7) + SECOND)
        for invite, error in ((used, InviteUsed), (expired, InviteExpired)):
            before = world.invites.find(invite.token)
            with pytest.raises(error):
                world.invites.revoke(invite.token, by="admin")
            assert world.invites.find(invite.token) == before

    @pytest.mark.parametrize("by", ["", "a\0", "\udce9", "x" * 1024, 7])
    def test_who_cannot_be_kept_is_refused(self, world: World, by: Any) -> None:
        """Who makes or revokes invites is a text that can be stored everywhere; else nothing is done."""
        invite = world.invites.create_for(HOST, source="command")
        calls: list[tuple[str, Callable[[], object]]] = [
            ("by", lambda: world.invites.revoke(invite.token, by=by)),
            ("by", lambda: world.invites.revoke_from(HOST, "HTwALnKL", by=by)),
            ("source", lambda: world.invites.create_for(HOST, source=by)),
        ]
        for field, call in calls:
            with pytest.raises(InvalidRequest) as caught:
                call()
            assert caught.value.field == field
        assert world.invites.list(HOST).invites == (invite,)

    @pytest.mark.parametrize("key_id", ["", "a/b", "\0", "\udce9"])
    def test_what_is_no_key_has_made_nothing(self, world: World, key_id: str) -> None:
        """Of a text that can be no key's id there is nothing to take back."""
        assert world.invites.revoke_from(HOST, key_id, by="admin") == 0

    def test_all_of_a_key_is_taken_back(self, world: World) -> None:
        """What a key has pending is taken back in any number of steps, and nothing of anybody else."""
        key, other = world.make_key(), world.make_key()
        world.invites.create_many(key, 1000)
        world.invites.create_many(key, 7)
        kept = world.invites.create(other)
        used = world.invites.create(key)
        world.invites.redeem(used.token)
        assert world.invites.revoke_from("EXAMPLE.com", key.id, by="admin") == 1007
        assert world.invites.revoke_from(HOST, key.id, by="admin") == 0
        assert world.invites.list(HOST, state="pending").invites == (kept,)
        assert world.count_invites(state="used") == 1


class TestPurging:
    """Invites.purge."""

    def test_what_is_over_for_longer_than_an_age_is_deleted(self, world: World) -> None:
        """The age counts from the closing or else from the expiry; exactly that age is not longer."""
        closed = world.invites.create_for(HOST, source="command")
        world.invites.revoke(closed.token, by="admin")
        expires = world.invites.create_for(HOST, source="command", expires_in=SECOND)
        pending = world.invites.create_for(HOST, source="command")
        world.clock.advance(timedelta(hours=1))
        assert world.invites.purge(older_than=timedelta(hours=1)) == 0
        world.clock.advance(1)
        assert world.invites.purge(older_than=timedelta(hours=1)) == 1
        assert world.invites.find(closed.token) is None
        world.clock.advance(1)
        assert world.invites.purge(older_than=timedelta(hours=1)) == 1
        assert world.invites.list(HOST).invites == (pending,)
        with pytest.raises(InviteUnknown):
            world.invites.redeem(expires.token)

    def test_steps_are_small_and_told(self, world: World) -> None:
        """After each step of at most 500 invites the caller is told how many are gone by now, and can pause."""
        world.invites.create_many_for(HOST, 1000, source="command", expires_in=SECOND)
        world.invites.create_many_for(HOST, 200, source="command", expires_in=SECOND)
        world.clock.advance(2)
        told: list[int] = []
        assert world.invites.purge(older_than=timedelta(0), after_step=told.append) == 1200
        assert told == [500, 1000, 1200]

    @pytest.mark.parametrize("age", [timedelta(seconds=-1), timedelta.max, timedelta.min])
    def test_bad_age_is_refused(self, world: World, age: timedelta) -> None:
        """An age in the future would delete what is pending."""
        invite = world.invites.create_for(HOST, source="command", expires_in=SECOND)
        with pytest.raises(InvalidRequest) as caught:
            world.invites.purge(older_than=age)
        assert caught.value.field == "older_than"
        assert world.invites.find(invite.token) == invite


class TestDeletingWithInvites:
    """delete_key_with_invites."""

    def test_key_goes_with_what_it_made(self, world: World) -> None:
        """The key is gone, its pending invites are taken back and counted, and no others."""
        key, other = world.make_key(), world.make_key()
        world.invites.create_many(key, 10)
        used = world.invites.create(key)
        world.invites.redeem(used.token)
        kept = world.invites.create(other)
        assert delete_key_with_invites(world.keys, world.invites, HOST, key.id, by="admin", sleep=no_sleep) == 10
        assert world.keys.find(key.id) is None
        assert world.invites.list(HOST, state="pending").invites == (kept,)
        assert {invite.revoked_by for invite in world.invites.list(HOST, state="revoked").invites} == {"admin"}

    def test_use_that_is_given_back_later_helps_nobody(self, world: World) -> None:
        """An invite that was being redeemed when its key went with all its invites is revoked once its use is back."""
        key = world.make_key()
        invite = world.invites.create(key)

        def fail_meanwhile() -> None:
            with world.invites.redeeming(invite.token):
                delete_key_with_invites(world.keys, world.invites, HOST, key.id, by="admin", sleep=no_sleep)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_meanwhile()
        assert world.invites.list(HOST, state="pending").invites == ()
        with pytest.raises(InviteRevoked):
            world.invites.redeem(invite.token)

    def test_second_run_sweeps_again(self, world: World) -> None:
        """A run that was cut short is repeated although the key is gone, and takes back what was left."""
        key = world.make_key()
        world.invites.create_many(key, 3)
        world.keys.delete(HOST, key.id)
        assert delete_key_with_invites(world.keys, world.invites, HOST, key.id, by="admin", sleep=no_sleep) == 3
        assert delete_key_with_invites(world.keys, world.invites, HOST, key.id, by="admin", sleep=no_sleep) == 0

    @pytest.mark.parametrize(
        ("verb", "when"),
        [
            ("delete_key", "before"),
            ("delete_key", "after"),
            ("revoke_invites_from", "before"),
            ("revoke_invites_from", "after"),
        ],
    )
    def test_run_that_failed_is_repeated(self, world: World, verb: str, when: str) -> None:
        """Wherever a run ends, the same call again finishes it."""
        key = world.make_key()
        world.invites.create_many(key, 3)
        key_store, invite_store = Faulty(world.key_store), Faulty(world.invite_store)
        (key_store if verb == "delete_key" else invite_store).fail(verb, when)
        through = world.through(key_store, invite_store)
        with pytest.raises(OutcomeUnknown if when == "after" else StorageError):
            delete_key_with_invites(through.keys, through.invites, HOST, key.id, by="admin", sleep=no_sleep)
        delete_key_with_invites(through.keys, through.invites, HOST, key.id, by="admin", sleep=no_sleep)
        assert world.keys.find(key.id) is None
        assert world.count_invites(state="pending") == 0
        assert world.count_invites(state="revoked") == 3

    @pytest.mark.parametrize("key_id", ["HTwALnKL", "", "a/b", "\0"])
    def test_unknown_key_takes_nothing_back(self, world: World, key_id: str) -> None:
        """An id that never was is KeyUnknown, and so is another host's key, which stays."""
        key = world.make_key()
        invite = world.invites.create(key)
        for host, wrong in ((HOST, key_id), ("example.org", key.id)):
            with pytest.raises(KeyUnknown):
                delete_key_with_invites(world.keys, world.invites, host, wrong, by="admin", sleep=no_sleep)
        assert world.keys.find(key.id) == key
        assert world.invites.find(invite.token) == invite

    def test_one_store_needs_no_waiting(self, world: World) -> None:
        """In one store nothing can come after the deletion; in two a second sweep follows a request's time limit."""
        key = world.make_key()
        slept: list[float] = []
        invites = world.invites
        sleep = refuse_to_sleep if invites.share_store_with_keys else slept.append
        delete_key_with_invites(world.keys, invites, HOST, key.id, by="admin", sleep=sleep)
        assert slept == ([] if invites.share_store_with_keys else [30.0])

    def test_late_invite_is_taken_back_by_the_second_sweep(self, world: World) -> None:
        """A request that had passed its check adds an invite after the first sweep in two stores, in one never."""
        key = world.make_key()
        world.invites.create(key)
        late: list[bool] = []

        def add_late(seconds: float) -> None:
            world.invites.create(key)
            late.append(True)

        revoked = delete_key_with_invites(world.keys, world.invites, HOST, key.id, by="admin", sleep=add_late)
        assert revoked == 1 + len(late)
        assert bool(late) is not world.invites.share_store_with_keys
        assert world.count_invites(state="pending") == 0

    @pytest.mark.parametrize("policy", [KeyPolicy(), KeyPolicy(quota=Quota(100_000, timedelta(days=1)))])
    def test_creations_at_full_speed_leave_none_pending(self, world: World, policy: KeyPolicy) -> None:
        """While threads create as fast as they can, the key goes, and afterwards nothing of it is pending."""
        key = world.keys.create(HOST, policy=policy)
        # Known from now on: not all of many threads may wait for the first check of a key.
        world.keys.verify(key.combined)
        deleted = threading.Event()
        made: list[str] = []

        def create_until_refused() -> int:
            while True:
                began_late = deleted.is_set()
                try:
                    found = world.keys.verify(key.combined)
                    made.append(world.invites.create(found).token)
                except InvalidKey:
                    return 0
                assert not began_late, "a request that began after the deletion was accepted"

        stopped = threading.Event()

        def delete() -> int:
            wait_until(lambda: len(made) >= 30)
            revoked = delete_key_with_invites(
                world.keys, world.invites, HOST, key.key.id, by="admin", sleep=lambda _: wait_for_makers()
            )
            deleted.set()
            return revoked

        def wait_for_makers() -> None:
            # What a request's time limit is for: by then none is under way that had passed its check.
            assert stopped.wait(30)

        makers = [create_until_refused] * 5
        outcomes: list[object] = []

        def make_together() -> int:
            outcomes.extend(run_at_once(makers))
            stopped.set()
            return 0

        _, revoked = run_at_once([make_together, delete])
        assert outcomes == [0] * 5
        assert revoked == len(made)
        assert all(world.invites.get(token).revoked_by == "admin" for token in made)
