"""Our redeemers race for invites in a Prosody whose own clients register; what its clients can do beside is counted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from invites_core import Invites, InvitesError, open_invite_store
from tests.proofs import redeem_race
from tests.proofs.prosody_services import agent_of
from tests.servers import Prosody
from tests.xmpp.clients import connected

HOST = redeem_race.HOST

Registered = Counter[str]
"""How often a client's registration ended with each outcome: ``registered``, or the condition of an error."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen.

    Attributes:
        race: The race of our redeemers, while clients registered.
        clients: What the clients were told that registered meanwhile, each with an invite of its own.
        contested: For invites that one redeemer of ours and one client tried at once: who got them.
        window_offers: Of clients that had offered the token of an invite before it was redeemed here, how many.
        window_accounts: How many of them then made an account.
    """

    race: redeem_race.Outcome
    clients: Registered
    contested: Counter[Literal["ours", "client", "both", "nobody"]]
    window_offers: int
    window_accounts: int

    @property
    def holds(self) -> bool:
        """Whether each invite had exactly one winner among ours, and no client was refused what was its own."""
        return self.race.holds and self.clients.keys() <= {"registered"} and not self.contested["nobody"]


def run_race(
    prosody: Prosody,
    url: str,
    *,
    invites: int,
    redeemers: int,
    processes: int,
    clients: int = 8,
    contested: int = 50,
    sessions: int = 20,
) -> Outcome:
    """Race for invites of a Prosody.

    Args:
        prosody: One that runs.
        url: The store of its invites, ``agent:`` or ``prosody:``.
        invites: How many invites our redeemers race for.
        redeemers: How many try each of them.
        processes: How many processes they are spread over.
        clients: How many XMPP clients register meanwhile, one account after the other.
        contested: For how many more invites a redeemer of ours and a client try at once.
        sessions: How many clients offer the token of one invite before it is redeemed.
    """
    store = open_invite_store(url)
    service = Invites(store)
    with _registering(prosody, service, clients) as registered:
        race = redeem_race.run_race(url, invites=invites, redeemers=redeemers, processes=processes)
    got = asyncio.run(_contest(prosody, service, contested))
    accounts = asyncio.run(_pass_the_window(prosody, service, sessions))
    store.close()
    return Outcome(race, registered, got, sessions, accounts)


@contextlib.contextmanager
def _registering(prosody: Prosody, service: Invites, clients: int) -> Iterator[Registered]:
    """Let clients register, in a thread, until the end; each makes at least one account."""
    registered: Registered = Counter()
    done = threading.Event()

    async def register_on(number: int) -> None:
        count = 0
        while not (count and done.is_set()):
            count += 1
            invite = await asyncio.to_thread(service.create_for, HOST, source="race")
            registered[await _register(prosody, invite.token, f"client-{number}-{count}") or "registered"] += 1

    async def register_all() -> None:
        await asyncio.gather(*map(register_on, range(clients)))

    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(register_all())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield registered
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


async def _register(prosody: Prosody, token: str, username: str) -> str | None:
    async with connected(prosody, HOST) as connection:
        return await connection.offer(token) or await connection.sign_up(username)


async def _contest(
    prosody: Prosody, service: Invites, count: int
) -> Counter[Literal["ours", "client", "both", "nobody"]]:
    """Let one of ours and one client try each of many invites at the same moment."""
    got: Counter[Literal["ours", "client", "both", "nobody"]] = Counter()
    for number in range(count):
        token = (await asyncio.to_thread(service.create_for, HOST, source="race")).token
        async with connected(prosody, HOST) as connection:
            ours, client = await asyncio.gather(
                asyncio.to_thread(_redeem, service, token),
                _offer_and_sign_up(connection.offer, connection.sign_up, token, f"contest-{number}"),
            )
        got["both" if ours and client else "ours" if ours else "client" if client else "nobody"] += 1
    return got


async def _offer_and_sign_up(
    offer: Callable[[str], Awaitable[str | None]],
    sign_up: Callable[[str], Awaitable[str | None]],
    token: str,
    username: str,
) -> bool:
    return await offer(token) is None and await sign_up(username) is None


def _redeem(service: Invites, token: str) -> bool:
    try:
        service.redeem(token, redeemer="ours", redemption_id="ours")
    except InvitesError:
        return False
    return True


async def _pass_the_window(prosody: Prosody, service: Invites, sessions: int) -> int:
    """Redeem an invite here after many clients have offered its token, and return how many make an account with it."""
    token = (await asyncio.to_thread(service.create_for, HOST, source="race")).token
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connected(prosody, HOST)) for _ in range(sessions)]
        refused = [await connection.offer(token) for connection in opened]
        assert refused == [None] * sessions
        assert await asyncio.to_thread(_redeem, service, token)
        answers = [await one.sign_up(f"window-{number}") for number, one in enumerate(opened)]
    return answers.count(None)


def main() -> int:
    """Run the race as a command."""
    parser = argparse.ArgumentParser(prog="prosody-race", description=__doc__)
    parser.add_argument("--invites", type=int, default=200)
    parser.add_argument("--redeemers", type=int, default=32)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--contested", type=int, default=200)
    parser.add_argument("--storage", choices=["internal", "sql"], default="sql", help="Prosody's storage")
    options = parser.parse_args()
    missing = Prosody.find_missing()
    if missing is not None:
        parser.error(missing)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Prosody(folder / "p", options.storage) as prosody, agent_of(prosody, folder) as url:
            outcome = run_race(
                prosody,
                url,
                invites=options.invites,
                redeemers=options.redeemers,
                processes=options.processes,
                clients=options.clients,
                contested=options.contested,
            )
    print(outcome.race)
    print(f"meanwhile clients of Prosody registered: {dict(outcome.clients)}")
    print(f"one of ours and one client at once, the invite was got by: {dict(outcome.contested)}")
    print(f"registered with a token that was used here meanwhile: {outcome.window_accounts} of {outcome.window_offers}")
    print("every invite had exactly one winner" if outcome.holds else "NOT every invite had exactly one winner")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
