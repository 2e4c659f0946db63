"""The store in a running Prosody under load and failures: of its modules, of its storage, of all of it."""

from __future__ import annotations

import threading
import urllib.request
from functools import partial
from typing import Any

import pytest

from invites_core.errors import OutcomeUnknown, StorageError
from invites_core.invites import Invite
from invites_core.stores import open_invite_store
from invites_core.stores.prosody import ProsodyStore
from tests.helpers import PATIENCE, SECOND, run_at_once, wait_until
from tests.prosody import (
    NOW,
    STORAGES,
    ConsoleProsody,
    make_live,
    redeem_now as redeem,
    running_on,
    start_prosody,
)

pytestmark = pytest.mark.real_server


@pytest.fixture
def store(prosody_store: ProsodyStore) -> ProsodyStore:
    """A store in a Prosody without invites."""
    return prosody_store


def test_listener_that_fails_adds_nothing(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """Where a module of Prosody fails at the event, nothing was changed, and the error holds no token."""
    hook = """(function() local mod = require "core.modulemanager".get_module("example.com", "invites").module;
      mod.fail_once = function(invite) mod:unhook("invite-created", mod.fail_once); error("no "..invite.token); end;
      mod:hook("invite-created", mod.fail_once); return true; end)()"""
    assert prosody.evaluate(hook)
    invite = make_live()
    with pytest.raises(StorageError, match="Prosody could not do it: .*no …") as caught:
        store.add_invites([make_live(), invite])
    assert type(caught.value) is StorageError
    assert store.list_invites("example.com", now=NOW, limit=1).invites == ()
    store.add_invites([invite])


def test_storage_that_fails_is_unknown_or_unchanged(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """Where Prosody's storage fails at writing the outcome is unknown, at reading nothing was changed."""
    invite = make_live()
    store.add_invites([invite])
    fail = """(function() local sm = require "core.storagemanager";
      real_open = real_open or sm.open;
      local broken = { get = function() return nil, "broken" end; keyval_store = nil;
        set_keys = function() return nil, "broken" end };
      local half = setmetatable({ set_keys = broken.set_keys; get = function() end }, { __index = broken });
      sm.open = function() return MODE end; return true; end)()"""
    restore = '(function() require "core.storagemanager".open = real_open; return true; end)()'
    try:
        prosody.evaluate(fail.replace("MODE", "broken"))
        for call in (partial(store.find_invite, invite.token), partial(store.add_invites, [make_live()])):
            with pytest.raises(StorageError, match="storage failed") as caught:
                call()
            assert type(caught.value) is StorageError
        prosody.evaluate(fail.replace("MODE", "half"))
        with pytest.raises(OutcomeUnknown, match="storage failed"):
            store.add_invites([make_live()])
    finally:
        prosody.evaluate(restore)
    assert store.find_invite(invite.token) == invite


def test_redeemers_win_once(store: ProsodyStore) -> None:
    """Of 32 who redeem each of 40 invites exactly one wins each, and those who repeat are told the same."""
    # bin/prosody-race lets them race for 200.
    names = [f"user{number}" for number in range(32)]
    for _ in range(2):
        invites = [make_live() for _ in range(20)]
        store.add_invites(invites)

        def redeem_all(redeemer: str, invites: list[Invite] = invites) -> list[str]:
            return [redeem(store, invite, redeemer, redeemer).outcome for invite in invites]

        outcomes = run_at_once([partial(redeem_all, name) for name in names])
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for number in range(len(invites)):
            of_one = [one[number] for one in outcomes if isinstance(one, list)]
            assert sorted(of_one) == ["redeemed"] + ["refused"] * 31
    assert sum(redeem_all(name).count("repeated") for name in names) == len(invites)


def test_log_is_clean(prosody: ConsoleProsody) -> None:
    """After all that these tests have done to it, Prosody has complained of nothing."""
    assert prosody.complaints() == []


class TestAlone:
    """On a Prosody that a test may kill or set up as it likes."""

    def test_host_without_the_module_is_told(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Without mod_invites on a host, or on any, the error says what to enable; it works once it is."""
        disabled = '"invites", "invites_register", "invites_api", "invites_page"'
        extra = f'VirtualHost "bare.example"\nmodules_disabled = {{ {disabled} }}'
        with start_prosody(tmp_path_factory.mktemp("p"), hosts=(), extra=extra) as prosody:
            store = ProsodyStore(prosody.socket, timeout=PATIENCE)
            bare = make_live(host="bare.example")
            for call in (store.ping, partial(store.find_invite, bare.token), partial(store.add_invites, [bare])):
                with pytest.raises(StorageError, match='no mod_invites.*add "invites" to its modules_enabled'):
                    call()
            prosody.run('module:load("invites", "bare.example")')
            store.ping()
            store.add_invites([bare])
            assert store.find_invite(bare.token) == bare
            store.close()

    def test_prosodys_page_shows_ours(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Its own page has an invite of ours as long as it is pending, and its link is in the event's row."""
        with start_prosody(
            tmp_path_factory.mktemp("p"), extra='invites_page_external = false; invites_page = "x:{invite.token}"'
        ) as prosody:
            store = ProsodyStore(prosody.socket, timeout=PATIENCE)
            pending, used, revoked, reset, expired = (
                make_live(),
                make_live(),
                make_live(),
                make_live(kind="reset", username="alice", registration=False),
                make_live(expires_at=NOW - SECOND),
            )
            store.add_invites([pending, used, revoked, reset, expired])
            redeem(store, used)
            store.revoke_invite(revoked.token, by="admin", host=None, now=NOW)
            shown = {
                name: invite.uri in read_page(prosody, invite)
                for name, invite in (
                    ("pending", pending),
                    ("used", used),
                    ("revoked", revoked),
                    ("reset", reset),
                    ("expired", expired),
                )
            }
            assert shown == {"pending": True, "used": False, "revoked": False, "reset": True, "expired": False}
            store.close()

    @pytest.mark.parametrize("storage", STORAGES)
    def test_killed_prosody_is_served_again(self, request: pytest.FixtureRequest, storage: str) -> None:
        """Prosody killed and started under load: errors in between, service after; what a database took is there."""
        with running_on(storage, request) as prosody:
            store = open_invite_store(f"prosody://{prosody.socket}")
            added: list[Invite] = []
            errors: list[StorageError] = []
            done = threading.Event()

            def add_all() -> None:
                while not done.is_set():
                    invite = make_live()
                    try:
                        store.add_invites([invite])
                        added.append(invite)
                    except StorageError as error:
                        errors.append(error)
                        done.wait(0.01)
                        if isinstance(error, OutcomeUnknown):
                            repeat(invite)

            def repeat(invite: Invite) -> None:
                while not done.is_set():
                    try:
                        store.add_invites([invite], if_absent=True)
                        added.append(invite)
                        return
                    except StorageError:
                        done.wait(0.01)

            def kill() -> None:
                try:
                    for _ in range(2):
                        wait_for(added, 50)
                        prosody.kill()
                        wait_for(errors, 20)
                        errors.clear()
                        prosody.start()
                    wait_for(added, 50)
                finally:
                    done.set()

            outcomes = run_at_once([*[add_all] * 15, kill])
            assert outcomes == [None] * 16
            # Default storage does not promise it.
            if storage != "internal":
                assert [invite for invite in added if store.find_invite(invite.token) != invite] == []
            store.close()


def read_page(prosody: ConsoleProsody, invite: Invite) -> str:
    """Return what mod_invites_page shows for an invite."""
    request = urllib.request.Request(f"{prosody.url}/invites_page?{invite.token}", headers={"Host": invite.host})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


def wait_for(things: list[Any], count: int) -> None:
    """Return when so many more things are there."""
    target = len(things) + count
    wait_until(lambda: len(things) >= target)
