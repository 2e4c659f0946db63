"""Fixtures for the tests in a browser: a site with every kind of invite, and visitors who look at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from invites_core import Hosts, HostSettings, Invite
from invites_core.stores.memory import MemoryStore
from invites_wsgi import App, Settings
from invites_wsgi.page.settings import HostPage, PageSettings
from tests.chromium import ANDROID
from tests.helpers import PATIENCE, make_invite

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LOGO = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 60 60"><rect width="60" height="60" fill="#7a1fa2"/></svg>'
IN_A_WEEK = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
A_DAY_AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
CASES: dict[str, dict[str, Any]] = {
    "register": {},
    "username": {"username": "alice"},
    "forever": {"expires_at": None},
    "roster": {"kind": "roster", "username": "bob"},
    "contact": {"kind": "roster", "username": "bob", "registration": False},
    "reset": {"kind": "reset", "username": "alice", "registration": False},
    "own": {"host": "own.example"},
    "both": {"host": "both.example"},
    "pale": {"host": "pale.example"},
    "used": {"uses": 1},
    "expired": {"expires_at": A_DAY_AGO},
    "revoked": {"revoked_by": "command"},
}
"""Every page that there is: the fields of the invite behind it. ``unknown`` comes on top."""


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (Werkzeug's name)
        """Say nothing: what is asked for holds tokens."""


@dataclass(frozen=True)
class Site:
    """A service with invites.

    Attributes:
        url: Where it is, without a path.
        invites: The invite of each case.
    """

    url: str
    invites: dict[str, Invite]

    def link_to(self, case: str) -> str:
        """Return the link of the page of a case."""
        token = "AAAAAAAAAAAAAAAAAAAAAAAA" if case == "unknown" else self.invites[case].token
        return f"{self.url}/invite?{token}"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, in a thread."""
    logo: Path = tmp_path_factory.mktemp("site") / "logo.svg"
    logo.write_text(LOGO)
    button: dict[str, Any] = {"button_label": "Join in the browser", "button_link": "https://own.example/join?{token}"}
    pages = {
        "example.com": HostPage(contact="mailto:admin@example.com"),
        "own.example": HostPage(logo=logo, color="#ffd800", xmpp=False, **button),
        "both.example": HostPage(color="#7a1fa2", **button),
        "pale.example": HostPage(color="#ffffff"),
    }
    store = MemoryStore()
    invites = {case: make_invite(**{"expires_at": IN_A_WEEK, **fields}) for case, fields in CASES.items()}
    store.add_invites(list(invites.values()))
    hosts = Hosts({host: HostSettings(site_name=f"The {host} site") for host in pages})
    settings = Settings(database="memory:", hosts=hosts, page=PageSettings(hosts=pages))
    app = App(settings, key_store=store, invite_store=store)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Site(f"http://127.0.0.1:{server.port}", invites)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Visit(Protocol):
    """The fixture ``visit``: opens the page of a case as somebody, and returns it when it is whole."""

    def __call__(self, case: str, **somebody: Any) -> Page: ...


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """Opens pages, each as somebody new: on a phone and in English unless it says otherwise."""
    with ExitStack() as opened:

        def open_page(case: str, **somebody: Any) -> Page:
            options = {
                "viewport": {"width": 390, "height": 844},
                "user_agent": ANDROID,
                "locale": "en-GB",
                "timezone_id": "Europe/Berlin",
                **somebody,
            }
            context = browser.new_context(**options)
            opened.callback(context.close)
            context.set_default_timeout(PATIENCE * 1000)
            page = context.new_page()
            page.goto(site.link_to(case))
            return page

        yield open_page
