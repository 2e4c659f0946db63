"""The store in a running Prosody: whatever was interrupted between two writes of Prosody's is finished by a repeat."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import pytest

from invites_core.errors import OutcomeUnknown
from invites_core.invites import Invite
from invites_core.stores.prosody import ProsodyStore
from tests.prosody import NOW, WEEK, ConsoleProsody, make_live, redeem_now as redeem

pytestmark = pytest.mark.real_server

# Lets so many writes through and fails at the next: before it is done, as where Prosody is killed, or after, as where
# the answer of a database is lost.
_ARM: Final = """
(function() local args = json.decode(base64.decode(ARGS));
  local sm = require "core.storagemanager";
  real_open = real_open or sm.open;
  local left = args.writes;
  local function guard(store)
    return setmetatable({}, { __index = function(_, name)
      local value = store[name];
      if name == "keyval_store" then return value and guard(value); end
      if type(value) ~= "function" then return value; end
      return function(_, ...)
        if name ~= "set" and name ~= "set_keys" then return value(store, ...); end
        left = left - 1;
        if left >= 0 then return value(store, ...); end
        if args.done then value(store, ...); end
        return nil, "interrupted";
      end;
    end });
  end
  sm.open = function(...) local store, err = real_open(...); return store and guard(store), err; end;
  return true;
end)()
"""
_DISARM: Final = '(function() require "core.storagemanager".open = real_open; return true; end)()'

FIELDS: Final[dict[str, dict[str, Any]]] = {
    "register": {},
    "roster": {"kind": "roster", "username": "inviter"},
    "contact": {"kind": "roster", "username": "inviter", "registration": False},
}
HOW_MANY: Final = 3
"""How many invites one sweep or creation is about."""


@pytest.fixture
def store(prosody_store: ProsodyStore) -> ProsodyStore:
    """A store in a Prosody without invites."""
    return prosody_store


@contextmanager
def failing_after(prosody: ConsoleProsody, writes: int, *, done: bool) -> Iterator[None]:
    """Let Prosody's storage fail after so many writes, with that one done or not."""
    prosody.evaluate(_ARM, ARGS={"writes": writes, "done": done})
    try:
        yield
    finally:
        prosody.evaluate(_DISARM)


def find_all_rows(prosody: ConsoleProsody, invites: list[Invite]) -> Any:
    """Return all that Prosody has of invites, alike for all whose tokens alone differ."""
    rows = [
        prosody.find_rows(user=user, store=name)
        for user, name in ((None, "invite_token"), (None, "invites_api_contact"), ("inviter", "invite_token"))
    ]
    text = json.dumps(rows)
    for number, invite in enumerate(invites):
        text = text.replace(invite.token, f"TOKEN-{number}")
    rows = json.loads(text)
    for row in [*rows[0].values(), *rows[1].values()]:
        del row["invites_api"]["added_at"]
    return rows


class Work:
    """A write, what has to be there before it, and what it then tells."""

    def __init__(self, store: ProsodyStore, kind: str) -> None:
        self._store = store
        self.invites = [make_live(**FIELDS[kind]) for _ in range(HOW_MANY)]
        self.repeats = False

    def prepare(self, name: str) -> None:
        if name != "add":
            self._store.add_invites(self.invites)
        if name == "release":
            redeem(self._store, self.invites[0])

    def add(self) -> object:
        self._store.add_invites(self.invites, if_absent=self.repeats)
        return None

    def redeem(self) -> object:
        assert redeem(self._store, self.invites[0]).outcome in ("redeemed", "repeated")
        return redeem(self._store, self.invites[0]).outcome

    def release(self) -> object:
        return self._store.release_redemption(self.invites[0].token, redemption_id="first", host=None, now=NOW) is None

    def revoke(self) -> object:
        invite = self._store.revoke_invite(self.invites[0].token, by="admin", host=None, now=NOW)[1]
        return invite is not None and invite.state_at(NOW)

    def revoke_all(self) -> object:
        return self._store.revoke_invites_from("command", by="admin", host="example.com", now=NOW, limit=100).next

    def purge(self) -> object:
        cursor = None
        while True:
            cursor = self._store.purge_invites(before=NOW + 2 * WEEK, limit=100, cursor=cursor).next
            if cursor is None:
                return None


@pytest.mark.parametrize("done", [pytest.param(False, id="not-done"), pytest.param(True, id="done")])
@pytest.mark.parametrize("name", ["add", "redeem", "release", "revoke", "revoke_all", "purge"])
@pytest.mark.parametrize("kind", list(FIELDS))
def test_a_repeat_finishes(prosody: ConsoleProsody, store: ProsodyStore, kind: str, name: str, done: bool) -> None:
    """Interrupted at any write of Prosody's, the outcome is unknown, and a repeat leaves what one call would have."""

    def run(call: Callable[[Work], object]) -> object:
        prosody.empty()
        work = Work(store, kind)
        work.prepare(name)
        told = call(work)
        return (
            told,
            find_all_rows(prosody, work.invites),
            [store.find_invite(one.token) is None for one in work.invites],
        )

    def finish(work: Work) -> object:
        return getattr(work, name)()

    expected = run(finish)
    writes = 0
    interrupted = True
    while interrupted:

        def interrupt(work: Work, writes: int = writes) -> object:
            nonlocal interrupted
            interrupted = False
            with failing_after(prosody, writes, done=done), suppress(OutcomeUnknown):
                return finish(work)
            interrupted = work.repeats = True
            return finish(work)

        assert run(interrupt) == expected, f"after {writes} writes"
        writes += 1
    # At least one write failed, and the last run had none that could.
    assert writes > (3 if (kind, name) in {("contact", "redeem"), ("contact", "revoke")} else 1)


def test_a_user_has_one_write_for_many(prosody: ConsoleProsody, store: ProsodyStore) -> None:
    """However many invites of one user there are, the user's map is written once: it may be one file."""
    work = Work(store, "roster")
    with failing_after(prosody, 2, done=False):
        work.add()
    with failing_after(prosody, 2, done=False):
        work.revoke_all()
    with failing_after(prosody, 2, done=False):
        work.purge()
    assert prosody.find_rows() == prosody.find_rows(user="inviter") == {}
