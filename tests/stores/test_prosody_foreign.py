"""The store in a running Prosody beside rows that are nobody's invites: others may write to Prosody's storage too."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytest

from invites_core.errors import CorruptRecord
from invites_core.stores.prosody import ProsodyStore
from invites_core.testing.lists import sweep
from tests.helpers import SECOND
from tests.prosody import NOW, WEEK, ConsoleProsody, make_live, redeem_now as redeem

pytestmark = pytest.mark.real_server

LIVE: Final = int((NOW + WEEK).timestamp())
TOKEN: Final = "A-token-of-some-module-1"


@pytest.fixture
def store(prosody_store: ProsodyStore) -> ProsodyStore:
    """A store in a Prosody without invites."""
    return prosody_store


def write_row(prosody: ConsoleProsody, token: str, row: Any, store: str = "invite_token") -> None:
    """Let Prosody store something; what is in `\\xff` in a text becomes that byte, which no UTF-8 has."""
    code = r"""(function() local args = json.decode(base64.decode(ARGS));
      local function raw(value)
        if type(value) == "string" then return (value:gsub("\\xff", "\255")); end
        if type(value) ~= "table" then return value; end
        local copy = {};
        for key, one in pairs(value) do copy[raw(key)] = raw(one); end
        return copy;
      end
      return require "core.modulemanager".get_module("example.com", "invites").module
        :open_store(args.store, "map"):set(nil, raw(args.token), raw(args.row)); end)()"""
    assert prosody.evaluate(code, ARGS={"token": token, "row": row, "store": store})


def make_row(**fields: Any) -> dict[str, Any]:
    """Return a row as Prosody writes one, but for some fields; None leaves one out."""
    row = {
        "type": "register",
        "jid": "example.com",
        "token": TOKEN,
        "allow_registration": True,
        "created_at": LIVE - 7 * 86_400,
        "expires": LIVE,
        **fields,
    }
    return {name: value for name, value in row.items() if value is not None}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(True, id="boolean"),
        pytest.param(LIVE, id="number"),
        pytest.param("text", id="text"),
        pytest.param({}, id="empty"),
        pytest.param([1, 2], id="list"),
        pytest.param(make_row(type="party"), id="type"),
        pytest.param(make_row(jid=7), id="jid"),
        pytest.param(make_row(created_at=None), id="no-creation"),
        pytest.param(make_row(created_at="x"), id="creation"),
        pytest.param(make_row(created_at=1e30), id="never-created"),
        pytest.param(make_row(expires=None), id="no-expiry"),
        pytest.param(make_row(expires={}), id="expiry"),
        pytest.param(make_row(expires=-1e300), id="expired-before-time"),
        pytest.param(make_row(additional_data=5), id="data"),
        pytest.param(make_row(invites_api="x"), id="ours"),
        pytest.param(make_row(invites_api={"uses": "many"}), id="uses"),
        pytest.param(make_row(invites_api={"expires": "late"}), id="our-expiry"),
        pytest.param(make_row(invites_api={"redemptions": "x"}), id="redemptions"),
    ],
)
def test_row_that_is_no_invite_is_left_alone(prosody: ConsoleProsody, store: ProsodyStore, row: Any) -> None:
    """It is left out of lists and sweeps and counted; by its token it is CorruptRecord, and nothing changes it."""
    pending, expired = make_live(), make_live(expires_at=NOW - SECOND)
    store.add_invites([pending, expired])
    write_row(prosody, TOKEN, row)
    before = prosody.find_rows()[TOKEN]
    for state, invite in ((None, [pending, expired]), ("pending", [pending]), ("expired", [expired])):
        page = store.list_invites("example.com", now=NOW, state=state, limit=10)  # type: ignore[arg-type]
        assert (sorted(one.token for one in page.invites), page.next) == (sorted(one.token for one in invite), None)
    assert "1 rows of Prosody's invites cannot be read" in " ".join(store.find_problems())
    for call in (
        partial(store.find_invite, TOKEN),
        partial(redeem, store, make_live(token=TOKEN)),
        partial(store.release_redemption, TOKEN, redemption_id="first", host=None, now=NOW),
        partial(store.revoke_invite, TOKEN, by="admin", host=None, now=NOW),
    ):
        with pytest.raises(CorruptRecord, match="cannot be read"):
            call()
    for source in ("command", "prosody"):
        store.revoke_invites_from(source, by="admin", host="example.com", now=NOW, limit=10)
    assert sweep(lambda cursor: store.purge_invites(before=NOW + 2 * WEEK, limit=10, cursor=cursor))[0] == 2
    assert prosody.find_rows() == {TOKEN: before}
    assert prosody.complaints() == []


def test_redemptions_that_are_none_are_told(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """Where they cannot be read the invite itself can, and is used as ever."""
    write_row(prosody, TOKEN, make_row(invites_api={"redemptions": [1, {"id": "other"}, {"id": []}]}))
    with pytest.raises(CorruptRecord, match="redemptions"):
        store.list_redemptions(TOKEN)
    assert [redeem(store, make_live(token=TOKEN)).outcome for _ in range(2)] == ["redeemed", "repeated"]


@pytest.mark.parametrize(
    ("token", "row"),
    [
        pytest.param(TOKEN, make_row(additional_data={"note": r"a\xffb"}), id="note"),
        pytest.param(TOKEN, make_row(type="roster", jid=r"\xff@example.com"), id="jid"),
        pytest.param(r"a\xffb", make_row(), id="token"),
        pytest.param("a b", make_row(), id="token-with-a-space"),
    ],
)
@pytest.mark.parametrize("where", ["invite_token", "invites_api_contact"])
# PostgreSQL takes no such text in the first place.
@pytest.mark.parametrize("running_prosody", ["internal", "sqlite"], indirect=True)
def test_text_that_is_not_utf8_spoils_one_row(
    prosody: ConsoleProsody, store: ProsodyStore, token: str, row: Any, where: str
) -> None:
    """Bytes that are no text, and tokens that no link can hold, keep nobody from seeing the other invites."""
    others = [make_live() for _ in range(3)]
    store.add_invites(others)
    write_row(prosody, token, {**row, "invites_api": {"closing": True}}, where)
    page = store.list_invites("example.com", now=NOW, limit=10)
    assert {one.token for one in page.invites} == {one.token for one in others}
    assert "1 rows of Prosody's invites cannot be read" in " ".join(store.find_problems())
    if token == TOKEN:
        with pytest.raises(CorruptRecord):
            store.find_invite(token)


def test_part_of_a_list_is_bounded_in_size(store: ProsodyStore) -> None:
    """A list of long invites comes in several parts, so that writing one does not hold Prosody up; none is left out."""
    labels = tuple(f"{number:03}" + "é" * 250 for number in range(100))
    for _ in range(5):
        store.add_invites([make_live(note="n" * 1_000, groups=labels) for _ in range(10)])
    seen: list[str] = []
    cursor, parts = None, 0
    while parts == 0 or cursor is not None:
        page = store.list_invites("example.com", now=NOW, limit=1_000, cursor=cursor)
        seen += [one.token for one in page.invites]
        cursor, parts = page.next, parts + 1
    assert len(seen) == len(set(seen)) == 50
    assert parts > 1
