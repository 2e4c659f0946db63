"""Clients of XMPP, by a library that is not ours: they register with an invite, log in, and add contacts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final
from xml.etree import ElementTree as ET

from slixmpp import ClientXMPP
from slixmpp.exceptions import IqError

from tests.helpers import PATIENCE
from tests.servers import Prosody

__all__ = [
    "PASSWORD",
    "Connection",
    "add_contact",
    "can_log_in",
    "connected",
    "find_contacts",
    "logged_in",
    "register",
    "run_command",
]

PASSWORD: Final = "correct horse"

PARS: Final = "urn:xmpp:pars:0"
REGISTER: Final = "jabber:iq:register"


class Connection(ClientXMPP):
    """A connection to a Prosody without TLS."""

    def __init__(self, prosody: Prosody, jid: str, password: str = PASSWORD) -> None:
        super().__init__(jid, password)
        self.enable_direct_tls = self.enable_starttls = False
        self.enable_plaintext = True
        self.plugin["feature_mechanisms"].unencrypted_plain = True
        self.plugin["feature_mechanisms"].unencrypted_scram = True
        self.register_plugin("xep_0050")
        self._prosody_address = "127.0.0.1", prosody.c2s_port

    def stay_unknown(self) -> None:
        """Do nothing by itself that logs in, and send what is sent before that."""
        self._stream_feature_order.clear()
        self._always_send_everything = True

    async def wait_for(self, *events: str) -> str:
        """Connect, and return the first of these events that comes."""
        came: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def note(name: str) -> None:
            if not came.done():
                came.set_result(name)

        for event in events:
            self.add_event_handler(event, lambda *_, name=event: note(name))
        self.connect(*self._prosody_address)
        return await asyncio.wait_for(came, PATIENCE)

    async def hang_up(self) -> None:
        """End the connection, if it is there."""
        closed = self.disconnected
        if self.is_connected():
            self.disconnect(ignore_send_queue=True)
            await asyncio.wait_for(closed, PATIENCE)
        self.cancel_connection_attempt()
        # The library leaves what sends for it waiting.
        if self._run_out_filters is not None:
            self._run_out_filters.cancel()

    async def offer(self, token: str) -> str | None:
        """Offer an invite's token (XEP-0445), and return the condition of the error that comes back, or None."""
        return await self._set(ET.Element(f"{{{PARS}}}preauth", {"token": token}))

    async def sign_up(self, username: str, password: str = PASSWORD) -> str | None:
        """Register in band (XEP-0077), and return the condition of the error that comes back, or None."""
        query = ET.Element(f"{{{REGISTER}}}query")
        for name, value in (("username", username), ("password", password)):
            ET.SubElement(query, f"{{{REGISTER}}}{name}").text = value
        return await self._set(query)

    async def _set(self, child: ET.Element) -> str | None:
        iq = self.make_iq_set(ito=self.boundjid.host)
        iq.xml.append(child)
        try:
            await iq.send(timeout=PATIENCE)  # type: ignore[no-untyped-call]  # the library has types in places
        except IqError as error:
            return str(error.condition)
        return None


@contextlib.asynccontextmanager
async def connected(prosody: Prosody, host: str = "example.com") -> AsyncIterator[Connection]:
    """Give a connection on which nobody logs in."""
    connection = Connection(prosody, host)
    connection.stay_unknown()
    try:
        await connection.wait_for("stream_negotiated")
        yield connection
    finally:
        await connection.hang_up()


@contextlib.asynccontextmanager
async def logged_in(prosody: Prosody, jid: str, password: str = PASSWORD) -> AsyncIterator[Connection]:
    """Give the connection of a user."""
    connection = Connection(prosody, jid, password)
    try:
        assert await connection.wait_for("session_start", "failed_all_auth") == "session_start", "cannot log in"
        yield connection
    finally:
        await connection.hang_up()


def register(prosody: Prosody, token: str | None, username: str, password: str = PASSWORD) -> str | None:
    """Register an account with an invite, or without one, and return the condition of the first error, or None."""

    async def try_it() -> str | None:
        async with connected(prosody) as connection:
            refused = None if token is None else await connection.offer(token)
            return refused or await connection.sign_up(username, password)

    return asyncio.run(try_it())


def can_log_in(prosody: Prosody, username: str, password: str = PASSWORD) -> bool:
    """Whether Prosody takes this password for an account."""

    async def try_it() -> bool:
        connection = Connection(prosody, f"{username}@example.com", password)
        try:
            return await connection.wait_for("session_start", "failed_all_auth") == "session_start"
        finally:
            await connection.hang_up()

    return asyncio.run(try_it())


def find_contacts(prosody: Prosody, username: str) -> dict[str, str]:
    """Return the contacts of an account, each with its kind of subscription."""

    async def ask() -> dict[str, str]:
        async with logged_in(prosody, f"{username}@example.com") as connection:
            return await _read_roster(connection)

    return asyncio.run(ask())


async def _read_roster(connection: Connection) -> dict[str, str]:
    answer = await connection.get_roster(timeout=PATIENCE)
    assert answer is not None
    return {str(jid): item["subscription"] for jid, item in answer["roster"]["items"].items()}


def add_contact(prosody: Prosody, username: str, token: str, inviter: str) -> None:
    """Ask to become an inviter's contact with an invite (XEP-0379), and return when they see this account."""

    async def ask() -> None:
        async with logged_in(prosody, f"{username}@example.com") as connection:
            connection.send_presence()
            presence = connection.make_presence(pto=f"{inviter}@example.com", ptype="subscribe")
            presence.xml.append(ET.Element(f"{{{PARS}}}preauth", {"token": token}))
            presence.send()
            # The inviter need not be there: their server accepts for them, and asks in its turn, which is granted.
            async with asyncio.timeout(PATIENCE):
                while connection.client_roster[f"{inviter}@example.com"]["subscription"] not in {"from", "both"}:
                    await asyncio.sleep(0.02)

    asyncio.run(ask())


def run_command(prosody: Prosody, username: str, node: str) -> dict[str, Any] | str:
    """Run a command of Prosody's (XEP-0050), and return the fields of its form, or the condition of the error."""

    async def ask() -> dict[str, Any] | str:
        async with logged_in(prosody, f"{username}@example.com") as connection:
            try:
                commands: Any = connection.plugin["xep_0050"]
                answer = await commands.send_command("example.com", node, timeout=PATIENCE)
            except IqError as error:
                return str(error.condition)
            return {field["var"]: field["value"] for field in answer["command"]["form"]["fields"]}

    return asyncio.run(ask())
