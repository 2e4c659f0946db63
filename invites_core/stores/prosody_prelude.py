"""The Lua that runs inside Prosody: a prelude sent once a connection, and one short line for each operation.

The prelude defines its functions in the environment of the one admin session that sent it: nothing of Prosody's own
is replaced, and they are gone with the connection. An operation is then a call of one of them, and its arguments are
base64 of JSON: no value is ever a part of the code. Prosody runs a line to its end before it does anything else, so
whatever one operation checks and changes is one step.

What every operation keeps to, so that a Prosody that is killed in the middle leaves nothing that a repeat cannot mend:

- All is checked before anything is written, and ``wrote`` tells which of the two a failure met.
- The row in the inviting user's own map is written before the row of the host, which is what a repeat looks at.
- An invite that only adds a contact, and is in no user's map, was used by Prosody's clients and is gone. Before one is
  closed its row says ``closing``: a repeat still finds it after its row in the map has gone.
- A row that somebody else has written may be anything: one that is not sound is shown as nothing, and is
  never changed.
- A storage that rewrites its whole file at each change (what Prosody calls a shim) is read once, and a map of a user is
  written once for all its invites.
"""

from __future__ import annotations

from typing import Final

from invites_core.stores.prosody_lua_rows import LUA_ROWS
from invites_core.stores.prosody_lua_verbs import LUA_VERBS

__all__ = ["CONTACT_STORE", "NEVER_EXPIRES", "PRELUDE"]

NEVER_EXPIRES: Final = 253402300799
"""What stands for "never" in a row: the last second of the year 9999. A row without a time is an error to Prosody."""

CONTACT_STORE: Final = "invites_api_contact"
"""The store of invites that only add a contact: a row among Prosody's own would let strangers register with it."""

MOST_SHOWN: Final = 1_000_000
"""A part of a list ends after so many characters: what a thousand long rows take to write holds Prosody up."""

MAX_REDEMPTIONS: Final = 1_000
"""How many redemptions a row holds: it is written anew at each."""

_LUA: Final = (
    (LUA_ROWS + LUA_VERBS)
    .replace("CONTACT_STORE", CONTACT_STORE)
    .replace("MAX_REDEMPTIONS", str(MAX_REDEMPTIONS))
    .replace("MOST_SHOWN", str(MOST_SHOWN))
    .replace("NEVER", str(NEVER_EXPIRES))
)

PRELUDE: Final = " ".join(line.strip() for line in _LUA.split("\n") if line.strip())
