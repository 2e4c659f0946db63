"""Prosody's own modules show what is ours, and what they make can be listed, shown, redeemed and revoked here."""

from __future__ import annotations

import http.client
from urllib.parse import urlencode

import pytest

from invites_core import Invites, InviteUsed
from invites_core.stores.agent import AgentStore
from tests.helpers import PATIENCE
from tests.prosody import NOW, ConsoleProsody
from tests.xmpp.clients import can_log_in, register, run_command

pytestmark = pytest.mark.real_server


def ask(prosody: ConsoleProsody, path: str, **form: str) -> tuple[int, str, str]:
    """Ask Prosody's web server, with a form if there is one; return status, Location and body."""
    connection = http.client.HTTPConnection("127.0.0.1", prosody.http_port, timeout=PATIENCE)
    headers = {"Host": "example.com", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST" if form else "GET", path, urlencode(form) or None, headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.headers.get("Location", ""), body


def read_token(link: str) -> str:
    """Return the token of a landing page or of an xmpp: URI."""
    return link.replace("preauth=", "?").rpartition("?")[2].partition(";")[0]


def assert_pending_and_revoke(prosody: ConsoleProsody, invites: Invites, token: str, source: str) -> None:
    """Check that an invite of Prosody's is listed and shown here, and is worth nothing once it is revoked."""
    found = invites.find(token)
    assert found is not None
    assert (found.host, found.kind, found.max_uses, found.state_at(NOW)) == ("example.com", "register", 1, "pending")
    assert found.source.partition("/")[0] == source
    listed = invites.list("example.com", state="pending", limit=1000).invites
    assert token in [one.token for one in listed]
    assert token in [one.token for one in invites.list("example.com", source=found.source, limit=1000).invites]
    invites.revoke(token, by="test")
    revoked = invites.find(token)
    assert revoked is not None
    assert (revoked.state_at(NOW), revoked.revoked_by) == ("revoked", "test")
    assert register(prosody, token, "nobody") == "forbidden"


def test_invite_of_the_shell(prosody: ConsoleProsody, invites: Invites) -> None:
    """What `prosodyctl shell invite create_account` makes is an invite like any other here."""
    made = [prosody.ctl("shell", "invite", "create_account", "example.com").stdout.split()[-1] for _ in range(2)]
    first, second = map(read_token, made)
    assert made[0] == f"https://example.com/invite?{first}"
    assert_pending_and_revoke(prosody, invites, first, "prosody")
    invites.redeem(second, redeemer="somebody")
    with pytest.raises(InviteUsed):
        invites.redeem(second, redeemer="another")
    assert register(prosody, second, "nobody") == "forbidden"


def test_invite_of_the_adhoc_command(prosody: ConsoleProsody, invites: Invites) -> None:
    """What an admin makes in a chat client is an invite like any other here, with the admin as its source."""
    invite = invites.create_for("example.com", source="test", roles=["prosody:admin"])
    assert register(prosody, invite.token, "chief") is None
    form = run_command(prosody, "chief", "urn:xmpp:invite#create-account")
    assert isinstance(form, dict)
    assert_pending_and_revoke(prosody, invites, read_token(form["uri"]), "chief@example.com")


def test_contact_invite_of_a_user(prosody: ConsoleProsody, invites: Invites, agent_store: AgentStore) -> None:
    """What a user makes to be added as a contact is in the user's own map alone, and is not seen here."""
    assert register(prosody, invites.create_for("example.com", source="test").token, "member") is None
    form = run_command(prosody, "member", "urn:xmpp:invite#invite")
    assert isinstance(form, dict)
    token = read_token(form["uri"])
    assert prosody.find_rows(user="member").keys() == {token}
    assert agent_store.find_invite(token) is None


def test_page_shows_ours(prosody: ConsoleProsody, invites: Invites) -> None:
    """`mod_invites_page` has the link of an invite that is pending, and says of another that it is of no use."""
    pending, used = (invites.create_for("example.com", source="test") for _ in range(2))
    invites.redeem(used.token, redeemer="somebody")
    status, _, page = ask(prosody, f"/invites_page?{pending.token}")
    assert (status, pending.uri in page) == (200, True)
    status, _, page = ask(prosody, f"/invites_page?{used.token}")
    assert (status, used.uri in page, used.token in page) == (200, False, False)


def test_web_registration_takes_ours(prosody: ConsoleProsody, invites: Invites) -> None:
    """`mod_invites_register_web` registers with an invite in a browser, once, and sends away who has none."""
    invite = invites.create_for("example.com", source="test")
    status, _, page = ask(prosody, f"/register?t={invite.token}")
    assert (status, f'value="{invite.token}"' in page) == (200, True)
    form = {"user": "browser", "password": "long enough", "token": invite.token}
    status, _, page = ask(prosody, f"/register?t={invite.token}", **form)
    assert (status, "browser@example.com" in page) == (200, True)
    assert can_log_in(prosody, "browser", "long enough")
    assert invites.find(invite.token) is None
    assert ask(prosody, f"/register?t={invite.token}", **form)[0] == 303


def test_web_registration_resets_no_password(prosody: ConsoleProsody, invites: Invites) -> None:
    """The web form of these modules takes an invite to reset for a registration: the account's name is in use."""
    assert register(prosody, invites.create_for("example.com", source="test").token, "offline") is None
    invite = invites.create_for("example.com", source="test", kind="reset", username="offline")
    form = {"user": "offline", "password": "long enough", "token": invite.token}
    status, _, page = ask(prosody, f"/register?t={invite.token}", **form)
    assert (status, "already in use" in page) == (200, True)
    assert not can_log_in(prosody, "offline", "long enough")
    assert register(prosody, invite.token, "offline", "long enough") is None
    assert can_log_in(prosody, "offline", "long enough")


def test_prosody_complains_of_nothing(prosody: ConsoleProsody) -> None:
    """After all these tests, Prosody has logged no warning and no error but what its own start says."""
    starting = ("Configuration warning", "Error indexing certificate directory")
    assert [line for line in prosody.complaints() if not any(text in line for text in starting)] == []
