"""The page behind an invite's link."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pytest

from invites_core import Hosts, HostSettings, Invite
from invites_core.stores.memory import MemoryStore
from tests.helpers import make_invite
from tests.wsgi.conftest import MakeService
from tests.wsgi.pages import Page
from tests.wsgi.support import Answer, FailingStore, LogBook, Service, hosts_of

HEADINGS = {
    "pending": "You are invited to example.com",
    "used": "This link has been used",
    "expired": "This link has expired",
    "revoked": "This link has been revoked",
    "unknown": "This link is unknown",
}


@pytest.fixture
def token(service: Service) -> str:
    """The token of a pending invite."""
    return service.create().token


def add(service: Service, **fields: Any) -> str:
    """Put an invite into the store, and return its token."""
    invite = make_invite(**fields)
    service.store.add_invites([invite])
    return invite.token


def snapshot(service: Service) -> dict[str, Invite]:
    """Return all that the store holds of invites."""
    assert isinstance(service.store, MemoryStore)
    return dict(service.store._invites)


def test_a_pending_invite_is_shown_with_all_that_is_needed(service: Service, token: str) -> None:
    """The page says what the invite is for, until when it holds, and links to the app; it loads nothing else."""
    answer = service.ask(f"/invite?{token}")
    assert (answer.status, answer["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = Page(answer.text)
    uri = f"xmpp:example.com?register;preauth={token}"
    assert page.texts["h1"] == [HEADINGS["pending"]]
    assert page.texts["title"] == ["Invitation to example.com"]
    assert [link for link in page.attributes("a", "href") if not (link or "").startswith("https:")] == [uri]
    assert page.texts["code"] == [uri]
    assert page.attributes("time", "datetime") == ["2026-03-08T12:00:00Z"]
    assert page.texts["time"] == ["8 March 2026, 12:00 UTC"]
    assert "you make an account of your own on example.com" in page.texts["main"][0]
    assert page.attributes("html", "lang") == ["en"]
    assert answer["Link"] == f'<{uri}>; rel="alternate"'


def test_the_page_is_one_small_request(service: Service, token: str) -> None:
    """The page loads nothing, not even an icon, and has less than 30 KB with style, script and QR code."""
    answer = service.ask(f"/invite?{token}")
    page = Page(answer.text)
    assert not {"img", "form", "iframe", "object", "embed", "source", "use", "image"} & set(page.texts)
    assert page.attributes("link", "href") == ["data:,"]
    assert page.attributes("script", "src") == [None]
    assert "url(" not in page.texts["style"][0]
    assert "@import" not in page.texts["style"][0]
    assert len(answer.body) < 30_000


@pytest.mark.parametrize(
    ("state", "status", "fields"),
    [
        pytest.param("used", 410, {"uses": 1}, id="used"),
        pytest.param("expired", 410, {"expires_at": datetime(2026, 3, 1, 11, 59, 59, tzinfo=UTC)}, id="expired"),
        pytest.param("revoked", 410, {"revoked_by": "command"}, id="revoked"),
        pytest.param("pending", 200, {"expires_at": datetime(2026, 3, 1, 12, tzinfo=UTC)}, id="in-its-last-second"),
        pytest.param("pending", 200, {"expires_at": None}, id="never-expires"),
        pytest.param("pending", 200, {"max_uses": None, "uses": 7}, id="unlimited"),
        pytest.param("pending", 200, {"max_uses": 5, "uses": 4}, id="some-uses-left"),
    ],
)
def test_every_state_has_its_status_and_words(
    service: Service, state: str, status: int, fields: dict[str, Any], log: LogBook
) -> None:
    """An invite that cannot be used is gone, with the reason and without its link; the log tells the state alone."""
    token = add(service, **fields)
    answer = service.ask(f"/invite?{token}")
    assert answer.status == status
    page = Page(answer.text)
    assert page.texts["h1"] == [HEADINGS[state]]
    assert ("a" in page.texts) == (token in answer.text) == (state == "pending")
    assert ("Link" in dict(answer.headers)) == (state == "pending")
    assert log.requests[-1]["reason"] == (None if state == "pending" else state)
    assert token not in log.text + log.json


def test_an_invite_ends_after_its_last_second(service: Service, token: str) -> None:
    """Valid means now is not after the end: the last second counts, the next does not."""
    service.clock.advance(timedelta(days=7))
    assert service.ask(f"/invite?{token}").status == 200
    service.clock.advance(1)
    assert service.ask(f"/invite?{token}").status == 410


def test_an_invite_that_never_expires_says_so(service: Service) -> None:
    """There is no date on the page of an invite without an end."""
    page = Page(service.ask(f"/invite?{add(service, expires_at=None)}").text)
    assert "It does not expire." in page.texts["p"]
    assert "time" not in page.texts


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("", id="none"),
        pytest.param("?", id="empty"),
        pytest.param("?AAAAAAAAAAAAAAAAAAAAAAAA", id="unknown"),
        pytest.param("?{shorter}", id="cut-short"),
        pytest.param("?{token}A", id="too-long"),
        pytest.param("?%20{token}", id="space-before"),
        pytest.param("?{token}%00", id="nul"),
        pytest.param("?token={token}", id="named"),
        pytest.param("?&{token}", id="after-an-ampersand"),
        pytest.param("?{token}?x", id="second-question-mark"),
        pytest.param("?%ff%fe{token}", id="not-utf-8"),
        pytest.param("?<script>alert(1)</script>", id="markup"),
        pytest.param("?{lower}", id="another-case"),
        pytest.param("?" + "A" * 5000, id="very-long"),
    ],
)
def test_what_is_no_invite_is_404(service: Service, token: str, query: str) -> None:
    """A link that is incomplete or made up gets a page that says so, and repeats nothing of it."""
    target = "/invite" + query.format(token=token, shorter=token[:-1], lower=token.swapcase())
    answer = service.ask(target)
    assert answer.status == 404
    page = Page(answer.text)
    assert page.texts["h1"] == [HEADINGS["unknown"]]
    assert "It may be incomplete" in page.texts["main"][0]
    assert token[:-1] not in answer.text
    assert "script" not in page.texts
    assert "AAAA" not in answer.text


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param("&utm_source=chat&fbclid=x", id="tracking"),
        pytest.param("&", id="ampersand"),
        pytest.param("=", id="empty-value"),
        pytest.param("=&x=1", id="empty-value-and-more"),
        pytest.param("&key=a&key=b", id="repeated-key"),
        pytest.param("&%ff", id="not-utf-8"),
    ],
)
def test_what_messengers_append_is_ignored(service: Service, token: str, tail: str) -> None:
    """What follows an ampersand is not part of the token, nor is the equals sign of an empty value."""
    assert service.ask(f"/invite?{token}{tail}").status == 200


def test_a_token_may_be_percent_encoded(service: Service, token: str) -> None:
    """A messenger that escapes more than it must does no harm."""
    escaped = "".join(f"%{ord(char):02X}" for char in token)
    assert service.ask(f"/invite?{escaped}").status == 200


@pytest.mark.parametrize("fields", [{}, {"uses": 1}, {"revoked_by": "command"}], ids=["pending", "used", "revoked"])
def test_head_is_get_without_a_body(service: Service, fields: dict[str, Any]) -> None:
    """A link preview that asks with HEAD gets the status and the headers of the page."""
    token = add(service, **fields)
    get, head = service.ask(f"/invite?{token}"), service.ask(f"/invite?{token}", method="HEAD")
    assert (head.status, head.body) == (get.status, b"")
    ids = {"X-Request-Id"}
    assert [pair for pair in head.headers if pair[0] not in ids] == [pair for pair in get.headers if pair[0] not in ids]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_page_takes_nothing(service: Service, token: str, method: str) -> None:
    """There is nothing to send to the page."""
    answer = service.ask(f"/invite?{token}", method=method, body=b"x=1")
    assert (answer.status, answer["Allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_looking_changes_nothing(service: Service, token: str, method: str) -> None:
    """However often the page is looked at, by whatever previews links, no invite is made, used or changed."""
    before = snapshot(service)
    for headers in ({}, service.bearer, {"Purpose": "prefetch"}, {"Accept": "application/json"}):
        for query in (token, f"{token}&key={service.key}", f"key={service.key}", "AAAAAAAAAAAAAAAAAAAA"):
            service.ask(f"/invite?{query}", method=method, headers=headers)
    assert snapshot(service) == before


SCRIPT = files("invites_wsgi").joinpath("static/invite.js").read_text("utf-8")


def digest(text: str) -> str:
    """Return what a policy admits a text as."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("state", ["pending", "unknown"])
def test_the_page_is_private_and_admits_its_own_style_alone(service: Service, token: str, state: str) -> None:
    """The page is not kept, not indexed, tells no other site where its reader was, and runs nothing."""
    answer = service.ask(f"/invite?{token}" if state == "pending" else "/invite?unknown")
    assert answer["Cache-Control"] == "no-store"
    assert answer["Referrer-Policy"] == "no-referrer"
    assert answer["X-Robots-Tag"] == "noindex"
    assert answer["X-Content-Type-Options"] == "nosniff"
    page = Page(answer.text)
    metas = {attributes.get("name"): attributes.get("content") for tag, attributes in page.elements if tag == "meta"}
    assert (metas["robots"], metas["referrer"]) == ("noindex", "no-referrer")

    policy = dict(directive.strip().partition(" ")[::2] for directive in answer["Content-Security-Policy"].split(";"))
    [style] = page.texts["style"]
    assert policy == {
        "default-src": "'none'",
        "style-src": digest(style),
        "script-src": digest(SCRIPT),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.texts.get("script", []) == ([SCRIPT] if state == "pending" else [])
    assert not [attributes for _, attributes in page.elements if "style" in attributes]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


@pytest.mark.parametrize(
    "site_name",
    ["<script>alert(1)</script>", 'Tom & Jerry\'s "place"', "</h1></title></style><b>", "{{ 7 * 7 }}", "Ünïcode 😀"],
)
def test_the_name_of_the_site_is_text(make_service: MakeService, site_name: str) -> None:
    """Whatever a site is called, its name is shown as it is and never becomes markup."""
    service = make_service(hosts=hosts_of(site_name=site_name))
    page = Page(service.ask(f"/invite?{service.create().token}").text)
    assert page.texts["h1"] == [f"You are invited to {site_name}"]
    assert page.texts["title"] == [f"Invitation to {site_name}"]
    assert "b" not in page.texts
    assert page.texts["script"] == [SCRIPT]
    assert page.attributes("meta", "content").count(f"Invitation to {site_name}") == 1


@pytest.mark.parametrize(
    ("fields", "words", "uri"),
    [
        pytest.param(
            {"username": "alice"},
            "you make the account alice@example.com, which is kept for you",
            "xmpp:alice@example.com?register;preauth={token}",
            id="username",
        ),
        pytest.param(
            {"kind": "reset", "username": "alice", "registration": False},
            "choose a new password for the account alice@example.com",
            "xmpp:alice@example.com?register;preauth={token}",
            id="reset",
        ),
        pytest.param(
            {"kind": "roster", "username": "bob"},
            "you make one on example.com with this link",
            "xmpp:bob@example.com?roster;preauth={token};ibr=y",
            id="roster",
        ),
        pytest.param(
            {"kind": "roster", "username": "bob", "registration": False},
            "You need an account for it, on any XMPP service.",
            "xmpp:bob@example.com?roster;preauth={token}",
            id="contact-only",
        ),
        pytest.param(
            {"username": "<b>&'\"é"},
            "you make the account <b>&'\"é@example.com, which is kept for you",
            f"xmpp:{quote('<b>&' + chr(39) + chr(34) + 'é', safe='')}@example.com?register;preauth={{token}}",
            id="odd-username",
        ),
    ],
)
def test_every_kind_says_what_it_is_for(service: Service, fields: dict[str, Any], words: str, uri: str) -> None:
    """Each kind of invite is explained in words and links to its own URI."""
    token = add(service, **fields)
    page = Page(service.ask(f"/invite?{token}").text)
    assert words in page.texts["main"][0]
    assert page.attributes("a", "href")[0] == page.texts["code"][0] == uri.format(token=token)


def test_a_host_that_is_not_served_has_no_page(make_service: MakeService) -> None:
    """An invite of a host that was taken out of the settings is unknown here, and one of a Unicode host is not."""
    service = make_service(hosts=Hosts({"example.com": HostSettings(), "bücher.example": HostSettings()}))
    assert service.ask(f"/invite?{add(service, host='other.example')}").status == 404
    page = Page(service.ask(f"/invite?{add(service, host='bücher.example')}").text)
    assert page.texts["h1"] == ["You are invited to bücher.example"]
    link = page.attributes("a", "href")[0]
    assert re.fullmatch(r"xmpp:b%C3%BCcher\.example\?register;preauth=\S{24}", link or "")


def test_a_store_that_fails_is_503_in_words(make_service: MakeService) -> None:
    """A person whose link cannot be looked up now is told to try again, and when."""
    from invites_core import StorageBusy

    store = FailingStore()
    service = make_service(store)
    token = service.create().token
    store.failure = StorageBusy()
    answer: Answer = service.ask(f"/invite?{token}", headers={"Accept": "text/html"})
    assert (answer.status, answer["Retry-After"]) == (503, "1")
    assert answer.text == "The service cannot do this at the moment; try again.\n"
