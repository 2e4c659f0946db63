"""What the store in a running Prosody does beyond the contract: the rows it writes, and that Prosody honours them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from invites_core.invites import Invite
from invites_core.store import RedeemResult
from invites_core.stores.prosody import ProsodyStore
from invites_core.testing.lists import sweep
from tests.prosody import NOW, WEEK, ConsoleProsody, make_live, redeem_now as redeem

pytestmark = pytest.mark.real_server


@pytest.fixture
def store(prosody_store: ProsodyStore) -> ProsodyStore:
    """A store in a Prosody without invites."""
    return prosody_store


def accepts(prosody: ConsoleProsody, invite: Invite, username: str | None = None) -> bool:
    """Tell whether Prosody's own mod_invites, which its pages and its registration ask, takes an invite."""
    code = """(function() local args = json.decode(base64.decode(ARGS));
      local mod = require "core.modulemanager".get_module(args.host, "invites");
      local ok, invite = pcall(mod.get, args.token, args.username);
      return not ok or invite ~= nil; end)()"""
    arguments = {"host": invite.host, "token": invite.token} | ({} if username is None else {"username": username})
    found: bool = prosody.evaluate(code, ARGS=arguments)
    return found


def purge(store: ProsodyStore, before: datetime) -> int:
    """Purge all that was over before a time; return how many invites there were."""
    return sweep(lambda cursor: store.purge_invites(before=before, limit=10, cursor=cursor))[0]


def test_row_is_what_prosody_writes(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """A plain invite's row has the fields of Prosody's own, and what is only ours stands in one field beside them."""
    invite = make_live(source="api/token/HTwALnKL", note="a note", groups=("staff",), roles=("prosody:admin",))
    store.add_invites([invite])
    row = prosody.find_rows()[invite.token]
    assert list(row.pop("invites_api")) == ["added_at"]
    assert row == {
        "type": "register",
        "jid": "example.com",
        "token": invite.token,
        "allow_registration": True,
        "additional_data": {
            "source": "api/token/HTwALnKL",
            "groups": ["staff"],
            # Prosody 13 has an order of them: the first is the primary one.
            "roles": ["prosody:admin"] if prosody.version >= (13,) else {"prosody:admin": True},
            "note": "a note",
        },
        "uri": f"xmpp:example.com?register;preauth={invite.token}",
        "created_at": int(NOW.timestamp()),
        "expires": int((NOW + WEEK).timestamp()),
        # What mod_invites_page puts there when `invite-created` is fired.
        "landing_page": f"https://example.com/invite?{invite.token}",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"username": "alice"}, {"type": "register", "jid": "alice@example.com"}, id="username"),
        pytest.param(
            {"kind": "reset", "username": "alice", "registration": False},
            {
                "type": "register",
                "jid": "alice@example.com",
                "allow_registration": True,
                "additional_data": {"source": "command", "allow_reset": "alice"},
            },
            id="reset",
        ),
        pytest.param(
            {"kind": "roster", "username": "alice", "registration": True},
            {"type": "roster", "jid": "alice@example.com", "allow_registration": True},
            id="roster-that-registers",
        ),
        pytest.param({"max_uses": None}, {"reusable": True}, id="without-limit"),
        pytest.param({"expires_at": None}, {"expires": 253402300799}, id="never-expires"),
    ],
)
def test_kinds_have_the_fields_that_prosody_reads(
    prosody: ConsoleProsody, store: ProsodyStore, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each kind is written as Prosody's modules write it, is valid to them, and comes back as it was."""
    invite = make_live(**fields)
    store.add_invites([invite])
    row = prosody.find_rows()[invite.token]
    assert {name: row.get(name) for name in expected} == expected
    assert row["uri"] == invite.uri
    assert accepts(prosody, invite)
    assert store.find_invite(invite.token) == invite


@pytest.mark.parametrize("end", ["used", "revoked", "swept"])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="register"),
        pytest.param({"kind": "reset", "username": "alice", "registration": False}, id="reset"),
        pytest.param({"kind": "roster", "username": "inviter"}, id="roster"),
        pytest.param({"kind": "roster", "username": "inviter", "registration": False}, id="contact"),
    ],
)
def test_prosody_refuses_what_is_over(
    prosody: ConsoleProsody, store: ProsodyStore, fields: dict[str, Any], end: str
) -> None:
    """A used or revoked invite stays as a row that Prosody refuses; one whose use is given back is valid again."""
    invite = make_live(**fields)
    inviter = "inviter" if invite.kind == "roster" else None
    store.add_invites([invite])
    assert accepts(prosody, invite, inviter)
    if end == "used":
        assert redeem(store, invite).outcome == "redeemed"
    elif end == "revoked":
        assert store.revoke_invite(invite.token, by="admin", host=None, now=NOW)[0]
    else:
        store.revoke_invites_from("command", by="admin", host="example.com", now=NOW, limit=10)
    assert not accepts(prosody, invite, inviter)
    assert prosody.find_rows(user="inviter") == {}
    found = store.find_invite(invite.token)
    assert found is not None
    assert found.state_at(NOW) == ("used" if end == "used" else "revoked")
    if end == "used":
        store.release_redemption(invite.token, redemption_id="first", host=None, now=NOW)
        assert accepts(prosody, invite, inviter)
        assert store.find_invite(invite.token) == invite


def test_used_invite_is_added_as_one_that_prosody_refuses(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """What is over already when it is added, as in a copy, is valid for nobody, and no event tells of it."""
    invites = [
        make_live(uses=1, closed_at=NOW),
        make_live(revoked_by="admin", closed_at=NOW, kind="roster", username="inviter"),
    ]
    store.add_invites(invites)
    assert not any(accepts(prosody, invite) for invite in invites)
    assert prosody.find_rows(user="inviter") == {}
    assert not any("landing_page" in row for row in prosody.find_rows().values())
    assert [store.find_invite(invite.token) for invite in invites] == invites


def test_contact_has_no_row_that_would_register(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """An invite that only adds a contact stands in the inviting user's map, and strangers cannot register with it."""
    invite = make_live(kind="roster", username="inviter", registration=False)
    store.add_invites([invite])
    assert prosody.find_rows() == {}
    assert prosody.find_rows(user="inviter") == {invite.token: int((NOW + WEEK).timestamp())}
    assert accepts(prosody, invite, "inviter")
    assert not accepts(prosody, invite)
    page = store.list_invites("example.com", now=NOW, limit=10)
    assert page.invites == (invite,)
    assert purge(store, NOW + 2 * WEEK) == 1
    assert prosody.find_rows(user="inviter") == prosody.find_rows(store="invites_api_contact") == {}


def test_contact_that_prosody_used_is_gone(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """Prosody deletes what its own clients have used; such an invite is unknown here too, and cannot be redeemed."""
    invite = make_live(kind="roster", username="inviter", registration=False)
    store.add_invites([invite])
    prosody.evaluate(
        """require "core.modulemanager".get_module("example.com", "invites").module
        :open_store("invite_token", "map"):set("inviter", json.decode(base64.decode(TOKEN)).token, nil)""",
        TOKEN={"token": invite.token},
    )
    assert store.find_invite(invite.token) is None
    assert redeem(store, invite) == RedeemResult(outcome="refused", invite=None)
    assert store.list_invites("example.com", now=NOW, limit=10).invites == ()


@pytest.mark.parametrize(
    ("command", "kind", "username"),
    [
        pytest.param('invite:create_account("example.com")', "register", None, id="account"),
        pytest.param('invite:create_account("alice@example.com")', "register", "alice", id="username"),
        pytest.param('invite:create_contact("inviter@example.com", true)', "roster", "inviter", id="contact"),
    ],
)
def test_invite_of_prosodys_shell_is_ours_too(
    prosody: ConsoleProsody, store: ProsodyStore, command: str, kind: str, username: str | None
) -> None:
    """What Prosody's own shell makes is found, listed, redeemed, released and revoked."""
    if prosody.version >= (13,):
        command = command.replace(", true)", ", { allow_registration = true })")
    said = prosody.run(command)
    [token] = prosody.find_rows()
    assert token in said
    invite = store.find_invite(token)
    assert invite is not None
    assert (invite.kind, invite.username, invite.source, invite.registration) == (kind, username, "prosody", True)
    assert (invite.max_uses, invite.uses, invite.groups, invite.roles, invite.note) == (1, 0, (), (), None)
    assert store.list_invites("example.com", now=NOW, source="prosody", limit=10).invites == (invite,)
    assert redeem(store, invite).outcome == "redeemed"
    assert not accepts(prosody, invite)
    assert store.release_redemption(token, redemption_id="first", host=None, now=NOW) == invite
    assert accepts(prosody, invite)
    assert store.revoke_invite(token, by="admin", host=None, now=NOW)[0]
    assert not accepts(prosody, invite)


def test_old_rows_of_prosody_are_purged(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """Prosody keeps what has expired for ever; a purge takes it away."""
    prosody.run('invite:create_account("example.com")')
    assert purge(store, NOW + WEEK / 2) == 0
    assert purge(store, NOW + 2 * WEEK) == 1
    assert prosody.find_rows() == {}
