"""What the store in a running Prosody takes as data, and what it refuses before anything happens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from invites_core.errors import InvalidHost, InvalidRequest, Unsupported
from invites_core.store import HISTORY
from invites_core.stores.prosody import ProsodyStore
from invites_core.testing.lists import sweep
from tests.helpers import PATIENCE, SECOND
from tests.prosody import NOW, ConsoleProsody, make_live, redeem_now as redeem

pytestmark = pytest.mark.real_server


@pytest.fixture
def store(prosody_store: ProsodyStore) -> ProsodyStore:
    """A store in a Prosody without invites."""
    return prosody_store


def purge(store: ProsodyStore) -> tuple[int, int]:
    """Purge all that is over in steps of three."""
    return sweep(lambda cursor: store.purge_invites(before=NOW, limit=3, cursor=cursor))


HOSTILE = [
    pytest.param('"; os.exit(1) --', id="lua-string"),
    pytest.param("]]..os.exit(1)..[[", id="lua-long-string"),
    pytest.param("\n> os.exit(1)\n", id="lines"),
    pytest.param("</repl-input><repl-input>> os.exit(1)</repl-input>", id="xml"),
    pytest.param("<!DOCTYPE x [<!ENTITY a 'b'>]>&a;&#0;]]>", id="entities"),
    pytest.param("a\0b\x01\x1f\x7f", id="controls"),
    pytest.param("\\u0041\\ud83d\\ude00\\n\\", id="escapes"),
    pytest.param("\U0001f600 é \u2028\ufeff\ufffe\uffff", id="unicode"),
    pytest.param("{invite.token}{{}}%s%d$(x)`x`", id="templates"),
    pytest.param("__array", id="special-key"),
    pytest.param("__hash", id="other-special-key"),
    pytest.param("", id="empty"),
    pytest.param("0123456789" * 1_000, id="long"),
]


@pytest.mark.parametrize("value", HOSTILE)
def test_values_come_back_as_they_were(prosody: ConsoleProsody, store: ProsodyStore, value: str) -> None:
    """Whatever is in a text, it is data: it comes back, and no Lua runs that is not the store's."""
    invite = make_live(source=value, groups=(value, "x"), roles=(value, "prosody:admin"), note=value, max_uses=None)
    one_role = make_live(roles=(value,), groups=(value,))
    store.add_invites([invite, one_role])
    assert store.find_invite(one_role.token) == one_role
    assert store.find_invite(invite.token) == invite
    assert store.list_invites("example.com", now=NOW, source=value, limit=10).invites == (invite,)
    for outcome in ("redeemed", "repeated"):
        assert redeem(store, invite, redemption_id=value, redeemer=value).outcome == outcome
    [redemption] = store.list_redemptions(invite.token)
    assert (redemption.redemption_id, redemption.redeemer) == (value, value)
    revoked = store.revoke_invite(invite.token, by=value, host=None, now=NOW)[1]
    assert revoked == replace(invite, uses=1, closed_at=NOW, revoked_by=value)
    assert store.release_redemption(invite.token, redemption_id=value, host=None, now=NOW) == replace(revoked, uses=0)
    with pytest.raises(InvalidHost):
        store.list_invites(f"{value}.example.net", now=NOW, limit=1)
    assert store.find_invite(value) is None
    assert store.list_redemptions(value) == []
    assert prosody.complaints() == []


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
def test_half_a_character_is_refused(prosody: ConsoleProsody, store: ProsodyStore, value: str) -> None:
    """A text that cannot be written as UTF-8 is refused by the name of its field, and nothing is added."""
    plain = make_live()
    for field, text in (("source", value), ("note", value), ("groups", (value,)), ("roles", (value,))):
        with pytest.raises(InvalidRequest) as caught:
            store.add_invites([plain, make_live(**{field: text})])
        assert caught.value.field == field
    store.add_invites([plain])
    for call in (
        partial(redeem, store, plain, redemption_id=value),
        partial(redeem, store, plain, redeemer=value),
        partial(store.release_redemption, plain.token, redemption_id=value, host=None, now=NOW),
        partial(store.revoke_invite, plain.token, by=value, host=None, now=NOW),
        partial(store.list_invites, "example.com", now=NOW, source=value, limit=1),
        partial(store.list_invites, value, now=NOW, limit=1),
    ):
        with pytest.raises(InvalidRequest, match="valid Unicode"):
            call()
    assert store.find_invite(plain.token) == plain


@pytest.mark.parametrize("username", ["", "a@b", "a/b", "a b", "a\0b", "'", "<a>", "\ud800", "x" * 1024])
def test_impossible_username_is_refused(store: ProsodyStore, username: str) -> None:
    """A user name that no address can have is refused before anything happens."""
    with pytest.raises(InvalidRequest) as caught:
        store.add_invites([make_live(username=username)])
    assert caught.value.field == "username"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"token": "../../etc/passwd"}, "token", id="token"),
        pytest.param({"kind": "roster"}, "username", id="roster-of-nobody"),
        pytest.param({"registration": False}, "registration", id="register-that-does-not"),
    ],
)
def test_impossible_invite_is_refused(store: ProsodyStore, fields: dict[str, Any], field: str) -> None:
    """What Prosody's rows have no shape for is refused by the name of the field."""
    with pytest.raises(InvalidRequest) as caught:
        store.add_invites([make_live(**fields)])
    assert caught.value.field == field


def test_unknown_host_is_told(store: ProsodyStore) -> None:
    """A host that Prosody does not serve is an InvalidHost that names it; nothing is added elsewhere."""
    plain = make_live()
    with pytest.raises(InvalidHost, match="Prosody does not serve nosuch.example"):
        store.add_invites([plain, make_live(host="nosuch.example")])
    assert store.find_invite(plain.token) is None
    with pytest.raises(InvalidHost):
        store.revoke_invite(plain.token, by="x", host="nosuch.example", now=NOW)


def test_number_of_rows_is_bounded(prosody: ConsoleProsody) -> None:
    """Above a number of rows lists and sweeps are Unsupported in a message that says what to do, and change nothing."""
    store = ProsodyStore(prosody.socket, max_rows=5, timeout=PATIENCE)
    invites = [make_live(expires_at=NOW + SECOND) for _ in range(4)]
    contact = make_live(kind="roster", username="inviter", registration=False, expires_at=NOW + SECOND)
    store.add_invites([*invites, contact])
    assert len(store.list_invites("example.com", now=NOW, limit=10).invites) == 5
    elsewhere = make_live(host="example.org")
    store.add_invites([elsewhere])
    assert len(store.list_invites("example.com", now=NOW, limit=10).invites) == 5
    store.add_invites([make_live()])
    calls = (
        partial(store.list_invites, "example.com", now=NOW, limit=1),
        partial(store.revoke_invites_from, "command", by="x", host="example.com", now=NOW, limit=1),
    )
    for call in calls:
        with pytest.raises(Unsupported):
            call()
    assert "more than 5 invites" in next(iter(store.find_problems()))
    assert store.find_invite(invites[0].token) == invites[0]
    assert store.features == {HISTORY}
    store.close()


def test_purge_counts_each_host_alone(prosody: ConsoleProsody) -> None:
    """A purge reads one host in a step; what is too large for it is told at the end, when the others are purged."""
    store = ProsodyStore(prosody.socket, max_rows=5, timeout=PATIENCE)
    hosts = ("example.com", "example.org")
    for host in hosts:
        store.add_invites([make_live(host=host, expires_at=NOW - SECOND) for _ in range(5)])
    assert purge(store) == (10, 3)
    assert prosody.find_rows() == prosody.find_rows("example.org") == {}
    for large, small in (hosts, hosts[::-1]):
        prosody.empty()
        for host, count in ((large, 6), (small, 5)):
            store.add_invites([make_live(host=host, expires_at=NOW - SECOND) for _ in range(count)])
        with pytest.raises(Unsupported, match="more than 5 invites of a host.*max_rows=N"):
            purge(store)
        assert (len(prosody.find_rows(large)), prosody.find_rows(small)) == (6, {})
    store.close()


@pytest.mark.parametrize("cursor", ["", "x", "!!", "0" * 16 + ".", "0" * 18 + "-" + "0" * 16, "0" * 16 + "!\n"])
def test_cursor_of_nobody_is_refused(store: ProsodyStore, cursor: str) -> None:
    """A purge goes on where one of its own steps has ended, and nowhere else."""
    with pytest.raises(InvalidRequest) as caught:
        store.purge_invites(before=NOW, limit=1, cursor=cursor)
    assert caught.value.field == "cursor"


def test_a_thousand_long_invites_fit_in_a_line(store: ProsodyStore) -> None:
    """What a request can ask for, a thousand invites alike with all that they may hold, is added at once."""
    labels = tuple(f"{number:03}" + "é" * 252 for number in range(100))
    invites = [make_live(note="n" * 1_000, groups=labels) for _ in range(20)]
    store.add_invites(invites)
    assert store.find_invite(invites[-1].token) == invites[-1]


def test_too_much_for_a_line_is_refused(store: ProsodyStore) -> None:
    """What is more than Prosody's socket takes at once is Unsupported, and none of it is added."""
    invites = [make_live(note=str(number) + "n" * 1_000) for number in range(1_000)]
    with pytest.raises(Unsupported, match="ask for fewer"):
        store.add_invites(invites)
    assert store.list_invites("example.com", now=NOW, limit=1).invites == ()


def test_redemptions_of_an_invite_are_bounded(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """An invite without limit takes as many redemptions as its row may hold; then it is Unsupported; repeats hold."""
    invite = make_live(max_uses=None)
    store.add_invites([invite])
    fill = """(function() local token = json.decode(base64.decode(TOKEN)).token;
      local map = require "core.modulemanager".get_module("example.com", "invites").module
        :open_store("invite_token", "map");
      local row = map:get(nil, token); local list = {};
      for i = 1, 998 do list[i] = { id = tostring(i), by = "alice", at = row.created_at }; end
      row.invites_api.redemptions, row.invites_api.uses = list, #list;
      return map:set(nil, token, row); end)()"""
    assert prosody.evaluate(fill, TOKEN={"token": invite.token})
    assert redeem(store, invite, "first").outcome == "redeemed"
    store.release_redemption(invite.token, redemption_id="second", host=None, now=NOW)
    for _ in range(2):
        with pytest.raises(Unsupported, match="as often as Prosody can keep"):
            redeem(store, invite, "one more")
    assert redeem(store, invite, "998").outcome == "repeated"
    assert store.find_invite(invite.token) == replace(invite, uses=999)
    assert len(store.list_redemptions(invite.token)) == 1_000
