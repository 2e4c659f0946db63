"""Prosodies for the tests of what speaks to one: on each storage, emptied before each test."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from invites_core.invites import Invite
from invites_core.store import InviteStore, RedeemResult
from invites_core.stores.prosody_socket import ProsodySocket
from tests.helpers import PATIENCE, make_invite
from tests.postgresql import new_database
from tests.servers import Prosody

__all__ = [
    "HOSTS",
    "NOW",
    "STORAGES",
    "WEEK",
    "ConsoleProsody",
    "make_live",
    "redeem_now",
    "running_on",
    "start_prosody",
]

HOSTS: Final = ("example.com", "example.org", "bücher.example")
STORAGES: Final = ("internal", "sqlite", "postgresql")
"""What the storages of Prosody are called in these tests."""

NOW: Final = datetime.now(UTC).replace(microsecond=0)
WEEK: Final = timedelta(days=7)

_EMPTY: Final = """
(function() for _, host in ipairs(json.decode(base64.decode(HOSTS))) do
  local mod = require "core.modulemanager".get_module(host, "invites").module;
  for _, name in ipairs{"invite_token", "invites_api_contact"} do
    local store = mod:open_store(name); local users = {};
    store:set(nil, nil);
    for user in store:users() do users[#users + 1] = user; end
    for _, user in ipairs(users) do store:set(user, nil); end
  end
end end)()
"""


class ConsoleProsody(Prosody):
    """A Prosody whose admin socket a test can use beside the store."""

    def __enter__(self) -> ConsoleProsody:
        super().__enter__()
        self.console = ProsodySocket(self.socket, timeout=PATIENCE)
        return self

    def stop(self) -> None:
        if hasattr(self, "console"):
            self.console.close()
        super().stop()

    @property
    def version(self) -> tuple[int, ...]:
        """Which Prosody it is, as it says itself: ``(0, 12, 3)``."""
        numbers = re.match(r"Result: (\d+(?:\.\d+)*)", self.run("> prosody.version"))
        assert numbers is not None
        return tuple(map(int, numbers[1].split(".")))

    def run(self, command: str) -> str:
        """Run a command of Prosody's own shell and return what it says."""
        result = self.console.run(command, changes=True)
        assert not result.is_error, result.text
        return result.text

    def evaluate(self, code: str, **values: Any) -> Any:
        """Evaluate an expression of Lua, in which names stand for values, and return its value."""
        for name, value in values.items():
            code = code.replace(name, f'"{base64.b64encode(json.dumps(value).encode()).decode()}"')
        setup = 'local json, base64 = require "util.json", require "util.encodings".base64; '
        code = " ".join(code.split())
        text = self.run(f"> (function() {setup} return base64.encode(json.encode({{ value = {code} }})) end)()")
        return json.loads(base64.b64decode(text.removeprefix("Result: "))).get("value")

    def empty(self) -> None:
        """Take away every invite."""
        self.evaluate(_EMPTY, HOSTS=list(HOSTS))

    def find_rows(self, host: str = "example.com", user: str | None = None, store: str = "invite_token") -> Any:
        """Return the rows of a store as Prosody has them; `{}` for none."""
        code = """(function() local args = json.decode(base64.decode(ARGS));
          local mod = require "core.modulemanager".get_module(args.host, "invites").module;
          return mod:open_store(args.store):get(args.user) or {}; end)()"""
        arguments = {"host": host, "store": store} | ({} if user is None else {"user": user})
        return self.evaluate(code, ARGS=arguments) or {}

    def complaints(self) -> list[str]:
        """Return what it has logged since its start that is a warning, an error or a trace."""
        printed = self.log_tail(100_000).splitlines()
        return [line for line in printed if any(word in line for word in ("\terror\t", "\twarn\t", "stack traceback"))]


def start_prosody(
    folder: Path,
    storage: Literal["internal", "sql"] = "internal",
    *,
    hosts: Sequence[str] = HOSTS,
    sql: str = '{ driver = "SQLite3", database = "prosody.sqlite" }',
    extra: str = "",
) -> ConsoleProsody:
    """Return a Prosody that can be started; without one, skip the test, or fail where INVITES_TEST_PROSODY is set."""
    missing = Prosody.find_missing_postgresql() if "PostgreSQL" in sql else Prosody.find_missing()
    if missing is not None:
        if "INVITES_TEST_PROSODY" in os.environ:
            pytest.fail(f"INVITES_TEST_PROSODY is set, and {missing}")
        pytest.skip(missing)
    return ConsoleProsody(folder, storage, hosts=hosts, sql=sql, extra=extra)


@contextmanager
def running_on(
    storage: str, request: pytest.FixtureRequest, *, hosts: Sequence[str] = HOSTS, extra: str = ""
) -> Iterator[ConsoleProsody]:
    """Run a Prosody on one of `STORAGES`, with data of its own."""
    folder = request.getfixturevalue("tmp_path_factory").mktemp("p")
    if storage != "postgresql":
        with start_prosody(folder, "internal" if storage == "internal" else "sql", hosts=hosts, extra=extra) as prosody:
            yield prosody
        return
    with (
        new_database(request.getfixturevalue("postgresql_server")) as url,
        start_prosody(folder, "sql", hosts=hosts, sql=Prosody.sql_on_postgresql(url), extra=extra) as prosody,
    ):
        yield prosody


def make_live(**fields: Any) -> Invite:
    """Return an invite that is pending by Prosody's own clock."""
    return make_invite(**{"created_at": NOW, "expires_at": NOW + WEEK, **fields})


def redeem_now(
    store: InviteStore, invite: Invite, redemption_id: str = "first", redeemer: str = "alice"
) -> RedeemResult:
    """Redeem an invite by an account, now."""
    return store.redeem_invite(
        invite.token, redemption_id=redemption_id, redeemer=redeemer, username=redeemer, host=None, now=NOW
    )
