"""Hostile values go through the agent and Prosody's admin socket by the ten thousand, and come back as they were."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from invites_core import Invite, InviteStore, open_invite_store
from invites_core.stores.prosody import ProsodyStore
from invites_core.stores.prosody_socket import ProsodySocket
from invites_core.testing import make_invite
from tests.servers import Prosody
from tests.stores.agents import serving

PIECES = (
    '"', "'", "\\", "]]", "[[", "]==]", "--", "--[[", "\n", "\r\n", "\x1b", "\u2028", "\ufeff", "\U0001f600", "é",
    "> ", "</repl-input>", "<repl-input>", "<![CDATA[", "]]>", "&quot;", "&#0;", "<!DOCTYPE x>", "<?xml?>", "%s", "%d",
    "$(touch PWNED)", "`touch PWNED`", "{invite.token}", "\\u0000", "\\x00", "\\\\", "nil", "__array", "__hash",
    '"); _G.PWNED = true; ("', "]]; _G.PWNED = true; [[", "\n> _G.PWNED = true\n", "' .. (function() _G.PWNED=1 end)()",
    "require'os'.execute'touch PWNED'", '"}; _G.PWNED = true; {"', "</stream:stream>", "=", "+/==", "A" * 300,
)  # fmt: skip
"""What has a meaning of its own in Lua, XML, JSON, base64, a shell, a terminal or a template. The agent refuses NUL."""

BATCH = 100
VALUES_EACH = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen.

    Attributes:
        values: How many values went through.
        changed: How many invites came back otherwise than they went in, or not at all.
        ran: Whether any of it ran as Lua.
        complaints: What Prosody has logged that is a warning, an error or a trace.
        seconds: How long it took.
    """

    values: int
    changed: int
    ran: bool
    complaints: tuple[str, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all were data."""
        return not (self.changed or self.ran or self.complaints)


def make_values(seed: int) -> Iterator[str]:
    """Yield hostile texts without end, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        # As long as the agent takes a group or a role.
        yield "".join(chance.choices(PIECES, k=chance.randint(1, 8)))[:255]


def send_values(prosody: Prosody, store: InviteStore, *, values: int, seed: int) -> Outcome:
    """Put values into every free field of invites and redemptions, and read them back."""
    hostile = make_values(seed)
    now = datetime.now(UTC).replace(microsecond=0)
    began = time.monotonic()
    sent = changed = 0
    while sent < values:
        batch = [_make_invite(hostile, now) for _ in range(BATCH)]
        store.add_invites(batch)
        changed += sum(store.find_invite(invite.token) != invite for invite in batch)
        # One of each batch, for the fields of redemptions: each costs a change of its own.
        identity, redeemer, by = next(hostile), next(hostile), next(hostile)
        token = batch[0].token
        store.redeem_invite(token, redemption_id=identity, redeemer=redeemer, username=None, host=None, now=now)
        kept = [(one.redemption_id, one.redeemer) for one in store.list_redemptions(token)]
        revoked, invite = store.revoke_invite(batch[1].token, by=by, host=None, now=now)
        changed += kept != [(identity, redeemer)]
        changed += not (revoked and invite is not None and invite.revoked_by == by)
        sent += BATCH * VALUES_EACH + 3
    complaints = _read_complaints(prosody)
    return Outcome(sent, changed, _has_run(prosody), complaints, time.monotonic() - began)


def _make_invite(hostile: Iterator[str], now: datetime) -> Invite:
    # One unlimited use and single ones, as Prosody can hold.
    return make_invite(
        created_at=now,
        expires_at=now + timedelta(days=1),
        max_uses=1,
        source=next(hostile),
        note=next(hostile),
        groups=(next(hostile), next(hostile), next(hostile)),
        roles=(next(hostile), next(hostile), next(hostile)),
    )


def _has_run(prosody: Prosody) -> bool:
    """Tell whether any value has done what it tries to: to set a global of Lua, or to make a file."""
    console = ProsodySocket(prosody.socket, timeout=30.0)
    try:
        answer = console.run("> tostring(rawget(_G, 'PWNED'))", changes=False)
    finally:
        console.close()
    return "nil" not in answer.text or bool(list(prosody.folder.rglob("PWNED")))


def _read_complaints(prosody: Prosody) -> tuple[str, ...]:
    marks = ("\terror\t", "\twarn\t", "stack traceback")
    return tuple(line for line in prosody.log_tail(1_000_000).splitlines() if any(mark in line for mark in marks))


def main() -> int:
    """Send them as a command."""
    parser = argparse.ArgumentParser(prog="prosody-values", description=__doc__)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", choices=["internal", "sql"], default="sql", help="Prosody's storage")
    options = parser.parse_args()
    missing = Prosody.find_missing()
    if missing is not None:
        parser.error(missing)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "agent.sock"
        with (
            Prosody(folder / "p", options.storage) as prosody,
            contextlib.closing(ProsodyStore(prosody.socket)) as behind,
            # As a command the agent would give no role that it does not know by name.
            serving(behind, path),
            contextlib.closing(open_invite_store(f"agent://{path}")) as store,
        ):
            outcome = send_values(prosody, store, values=options.values, seed=options.seed)
    print(f"{outcome.values:,} values in {outcome.seconds:.0f} s; invites that came back otherwise: {outcome.changed}")
    print(
        f"ran as Lua: {'yes' if outcome.ran else 'no'}; lines of complaint in Prosody's log: {len(outcome.complaints)}"
    )
    return int(not outcome.holds)


if __name__ == "__main__":
    sys.exit(main())
