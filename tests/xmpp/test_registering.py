"""People with an XMPP client get what an invite of ours promises, and Prosody refuses what is over.

What Prosody 0.12 and 13 do not hold is shown here as well, and told on the page "In front of a running Prosody". Where
the two differ, each test expects what the version does that runs.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from invites_core import Invites, InviteUnknown, InviteUsed, WrongRedeemer
from invites_core.stores.agent import AgentStore
from tests.helpers import SECOND
from tests.prosody import NOW, ConsoleProsody, make_live
from tests.xmpp.clients import (
    PASSWORD,
    add_contact,
    can_log_in,
    connected,
    find_contacts,
    register,
    run_command,
)

pytestmark = pytest.mark.real_server

CREATE_ACCOUNT = "urn:xmpp:invite#create-account"


def invite_user(prosody: ConsoleProsody, invites: Invites, username: str) -> None:
    """Let somebody have an account."""
    assert register(prosody, invites.create_for("example.com", source="test").token, username) is None


def test_account_is_made_with_an_invite_once(prosody: ConsoleProsody, invites: Invites) -> None:
    """Who has an invite registers and logs in; the second to come is refused, and so is who has none."""
    invite = invites.create_for("example.com", source="test")
    assert register(prosody, invite.token, "once") is None
    assert can_log_in(prosody, "once")
    assert not can_log_in(prosody, "once", "wrong")
    assert register(prosody, invite.token, "twice") == "forbidden"
    assert register(prosody, None, "twice") == "not-acceptable"
    assert not can_log_in(prosody, "twice")


def test_invite_that_a_client_used_is_unknown_here(prosody: ConsoleProsody, invites: Invites) -> None:
    """Prosody deletes what its clients have used, so that neither is it listed nor can anybody redeem it here."""
    invite = invites.create_for("example.com", source="test")
    assert register(prosody, invite.token, "gone") is None
    assert invites.find(invite.token) is None
    assert invite.token not in [one.token for one in invites.list("example.com").invites]
    with pytest.raises(InviteUnknown):
        invites.redeem(invite.token, redeemer="gone")
    with pytest.raises(InviteUnknown):
        invites.revoke(invite.token, by="test")


def test_invite_that_is_over_is_refused(prosody: ConsoleProsody, invites: Invites, agent_store: AgentStore) -> None:
    """No client registers with an invite that was used here, revoked here, or has expired."""
    used, revoked = (invites.create_for("example.com", source="test") for _ in range(2))
    invites.redeem(used.token, redeemer="somebody")
    invites.revoke(revoked.token, by="test")
    expired = make_live(created_at=NOW - timedelta(days=8), expires_at=NOW - SECOND)
    agent_store.add_invites([expired])
    for invite in (used, revoked, expired):
        assert register(prosody, invite.token, "late") == "forbidden"
    assert not can_log_in(prosody, "late")


def test_use_that_was_given_back_is_taken(prosody: ConsoleProsody, invites: Invites) -> None:
    """After a release here a client registers with the invite, and then nobody can redeem it here any more."""
    invite = invites.create_for("example.com", source="test")
    redemption = invites.redeem(invite.token, redeemer="other")
    assert register(prosody, invite.token, "patient") == "forbidden"
    invites.release(invite.token, redemption_id=redemption.redemption_id)
    assert register(prosody, invite.token, "patient") is None
    assert can_log_in(prosody, "patient")
    with pytest.raises(InviteUnknown):
        invites.redeem(invite.token, redeemer="other")


def test_invite_without_a_limit_is_for_all(prosody: ConsoleProsody, invites: Invites) -> None:
    """With an invite of unlimited uses one after the other registers, until it is revoked."""
    invite = invites.create_for("example.com", source="test", max_uses=None)
    assert [register(prosody, invite.token, name) for name in ("many1", "many2")] == [None, None]
    found = invites.find(invite.token)
    # What Prosody's clients use is not counted.
    assert found is not None
    assert (found.uses, found.state_at(NOW)) == (0, "pending")
    invites.revoke(invite.token, by="test")
    assert register(prosody, invite.token, "many3") == "forbidden"


def test_roles_are_given(prosody: ConsoleProsody, invites: Invites) -> None:
    """Who registers with an invite for admins may what Prosody lets admins alone do."""
    invite = invites.create_for("example.com", source="test", roles=["prosody:admin"])
    assert register(prosody, invite.token, "boss") is None
    invite_user(prosody, invites, "worker")
    assert isinstance(run_command(prosody, "boss", CREATE_ACCOUNT), dict)
    assert run_command(prosody, "worker", CREATE_ACCOUNT) == "forbidden"


def test_first_role_is_the_primary_one_in_prosody_13(prosody: ConsoleProsody, invites: Invites) -> None:
    """Of several roles Prosody 13 makes the first the account's own, and lets it take the others; 0.12 has a set."""
    roles = ["prosody:member", "prosody:admin"]
    invite = invites.create_for("example.com", source="test", roles=roles)
    assert register(prosody, invite.token, "deputy") is None
    if prosody.version < (13,):
        given = prosody.evaluate("""require "core.storagemanager".open("example.com", "roles"):get("deputy")""")
        assert given == dict.fromkeys(roles, True)
        return
    code = """(function() local users = require "core.usermanager"; return {
      primary = users.get_user_role("deputy", "example.com").name,
      admin = users.user_can_assume_role("deputy", "example.com", "prosody:admin"),
      operator = users.user_can_assume_role("deputy", "example.com", "prosody:operator") }; end)()"""
    assert prosody.evaluate(code) == {"primary": "prosody:member", "admin": True, "operator": False}


def test_username_holds_here_and_not_in_prosody(prosody: ConsoleProsody, invites: Invites) -> None:
    """An invite for one account admits no other redeemer here; a client of Prosody takes what name it likes."""
    invite = invites.create_for("example.com", source="test", username="anna")
    assert invite.uri == f"xmpp:anna@example.com?register;preauth={invite.token}"
    with pytest.raises(WrongRedeemer):
        invites.redeem(invite.token, redeemer="otto")
    assert register(prosody, invite.token, "otto") is None
    assert can_log_in(prosody, "otto")
    assert register(prosody, invite.token, "anna") == "forbidden"


def test_password_is_reset(prosody: ConsoleProsody, invites: Invites) -> None:
    """An invite to reset changes the password of its account, once, and of no other that there is."""
    for name in ("forgetful", "bystander"):
        invite_user(prosody, invites, name)
    invite = invites.create_for("example.com", source="test", kind="reset", username="forgetful")
    assert register(prosody, invite.token, "bystander", "stolen password") == "conflict"
    assert can_log_in(prosody, "bystander")
    assert register(prosody, invite.token, "forgetful", "new password") is None
    assert (can_log_in(prosody, "forgetful"), can_log_in(prosody, "forgetful", "new password")) == (False, True)
    assert register(prosody, invite.token, "forgetful", "third password") == "forbidden"
    assert invites.find(invite.token) is None


def test_reset_makes_an_account_in_prosody(prosody: ConsoleProsody, invites: Invites) -> None:
    """With an invite to reset a client of Prosody can register a name that nobody has, which uses it up."""
    invite_user(prosody, invites, "owner")
    invite = invites.create_for("example.com", source="test", kind="reset", username="owner")
    assert register(prosody, invite.token, "newcomer") is None
    assert can_log_in(prosody, "newcomer")
    assert register(prosody, invite.token, "owner", "new password") == "forbidden"
    assert can_log_in(prosody, "owner", PASSWORD)


def test_newcomer_and_inviter_are_contacts(prosody: ConsoleProsody, invites: Invites) -> None:
    """Who registers with somebody's invite is in their list of contacts, and they in the newcomer's."""
    invite_user(prosody, invites, "host")
    invite = invites.create_for("example.com", source="test", kind="roster", username="host", registration=True)
    assert register(prosody, invite.token, "guest") is None
    assert find_contacts(prosody, "guest") == {"host@example.com": "both"}
    assert find_contacts(prosody, "host") == {"guest@example.com": "both"}
    assert register(prosody, invite.token, "guest2") == "forbidden"


def test_contact_is_added_without_asking(prosody: ConsoleProsody, invites: Invites) -> None:
    """Who has an account becomes the inviter's contact with the invite, which is then used up; their own list waits."""
    for name in ("inviter", "friend"):
        invite_user(prosody, invites, name)
    invite = invites.create_for("example.com", source="test", kind="roster", username="inviter", registration=True)
    add_contact(prosody, "friend", invite.token, "inviter")
    assert find_contacts(prosody, "inviter") == {"friend@example.com": "both"}
    assert find_contacts(prosody, "friend") == {"inviter@example.com": "from"}
    assert invites.find(invite.token) is None


def test_invite_for_contacts_only_makes_no_account(prosody: ConsoleProsody, invites: Invites) -> None:
    """Nobody registers with an invite that only adds a contact; Prosody 13 adds it, 0.12 fails on it."""
    for name in ("shy", "admirer"):
        invite_user(prosody, invites, name)
    invite = invites.create_for("example.com", source="test", kind="roster", username="shy", registration=False)
    assert register(prosody, invite.token, "stranger") == "forbidden"
    assert prosody.find_rows(user="shy").keys() == {invite.token}
    if prosody.version >= (13,):
        add_contact(prosody, "admirer", invite.token, "shy")
        assert find_contacts(prosody, "shy") == {"admirer@example.com": "both"}
        assert invites.find(invite.token) is None
    else:
        invites.revoke(invite.token, by="test")
    assert prosody.find_rows(user="shy") == {}


def test_token_is_looked_at_when_it_is_offered_and_not_again(prosody: ConsoleProsody, invites: Invites) -> None:
    """Clients of Prosody that have offered the token register with it, also when it is used or revoked by then."""
    used, revoked = (invites.create_for("example.com", source="test") for _ in range(2))

    async def race() -> list[str | None]:
        async with connected(prosody) as first, connected(prosody) as second, connected(prosody) as third:
            offered = [await first.offer(used.token), await second.offer(used.token), await third.offer(revoked.token)]
            assert offered == [None] * 3
            invites.redeem(used.token, redeemer="ours")
            with pytest.raises(InviteUsed):
                invites.redeem(used.token, redeemer="another")
            invites.revoke(revoked.token, by="test")
            async with connected(prosody) as late:
                assert [await late.offer(invite.token) for invite in (used, revoked)] == ["forbidden"] * 2
                assert await late.sign_up("window4") == "not-acceptable"
            return [await first.sign_up("window1"), await second.sign_up("window2"), await third.sign_up("window3")]

    assert asyncio.run(race()) == [None] * 3
    # The rows of those who redeemed or revoked are deleted with the clients' uses.
    assert [invites.find(invite.token) for invite in (used, revoked)] == [None, None]
