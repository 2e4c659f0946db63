"""What `/invites_api` and `/healthz` answer, over the app as it is."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

from invites_core import ApiKeys, SecretHasher, StorageBusy, StorageError
from invites_core.hashing import compute_tag
from invites_core.keys import KeyPolicy
from invites_core.stores.memory import MemoryStore
from invites_wsgi import App, Settings, SettingsError, create_app
from invites_wsgi.app import HEALTH_SECONDS
from tests.helpers import FakeClock, make_key
from tests.wsgi.conftest import MakeService
from tests.wsgi.support import Answer, FailingStore, LogBook, Service, ask, hosts_of

CORS_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key",
    "Access-Control-Max-Age": "7200",
    "Access-Control-Expose-Headers": "Location",
}


# What creates, and what does not


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_get_and_post_create_an_invite(service: Service, method: str) -> None:
    """A request with a key makes one invite, durable and single-use, and answers with the link to it alone."""
    answer = service.create(method=method)
    assert (answer.status, answer.body, answer["Content-Length"]) == (201, b"", "0")
    assert answer.get("Content-Type") is None
    assert re.fullmatch(r"https://example\.com/invite\?[A-Za-z0-9_-]{24}", answer["Location"])
    invite = service.get_invite(answer.token)
    assert (invite.host, invite.kind, invite.max_uses, invite.uses) == ("example.com", "register", 1, 0)
    assert (invite.created_at, invite.expires_at) == (service.clock.now, service.clock.now + timedelta(days=7))
    assert invite.source == f"api/token/{service.issued.key.id}"
    assert service.count() == 1


def test_the_link_is_the_xmpp_uri_where_a_host_has_no_page(make_service: MakeService) -> None:
    """A host whose landing page is set to nothing links to the invite's own URI."""
    service = make_service(hosts=hosts_of(landing_page=""))
    answer = service.create()
    assert re.fullmatch(r"xmpp:example\.com\?register;preauth=[A-Za-z0-9_-]{24}", answer["Location"])


def test_what_a_host_is_set_to_decides_about_its_invites(make_service: MakeService) -> None:
    """The template of the landing page and the lifetime come from the settings of the key's host."""
    service = make_service(
        hosts=hosts_of(landing_page="https://join.example.com/#/i/{token}/{token}", invite_expiry=timedelta(hours=36))
    )
    answer = service.create()
    assert answer["Location"].startswith("https://join.example.com/#/i/")
    invite = service.get_invite(answer["Location"].rpartition("/")[2])
    assert invite.expires_at == service.clock.now + timedelta(hours=36)


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_other_methods_create_nothing(service: Service, method: str) -> None:
    """A method that the API does not take is answered 405 with those that it takes, HEAD above all."""
    answer = service.create(f"/invites_api?key={service.key}", method=method)
    assert (answer.status, answer["Allow"], service.count()) == (405, "GET, POST, OPTIONS", 0)
    assert answer["Content-Length"] != "0"
    assert (answer.body == b"") == (method == "HEAD")


@pytest.mark.parametrize("path", ["/invites_api", "/invite", "/healthz"])
def test_options_creates_nothing_and_asks_for_no_key(service: Service, path: str) -> None:
    """OPTIONS says which methods a path takes."""
    answer = service.ask(path, method="OPTIONS")
    assert (answer.status, answer.body, service.count()) == (200, b"", 0)
    expected = "GET, POST, OPTIONS" if path == "/invites_api" else "GET, HEAD, OPTIONS"
    assert answer["Allow"] == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("Sec-Purpose", "prefetch", id="sec-purpose"),
        pytest.param("Sec-Purpose", "prefetch;prerender", id="prerender"),
        pytest.param("Sec-Purpose", 'prefetch;anonymous-client-ip;x="y"', id="parameters"),
        pytest.param("Purpose", "prefetch", id="purpose"),
        pytest.param("Purpose", "Prefetch", id="any-case"),
        pytest.param("X-Moz", "prefetch", id="x-moz"),
    ],
)
def test_a_prefetch_creates_nothing(service: Service, log: LogBook, method: str, name: str, value: str) -> None:
    """What a browser fetches before anybody asked for it is refused, with a valid key too."""
    answer = service.create("/invites_api?redirect=true", method=method, headers={name: value})
    assert (answer.status, answer.get("Location"), service.count()) == (403, None, 0)
    assert answer.get("WWW-Authenticate") is None
    assert [entry["reason"] for entry in log.requests] == ["prefetch"]


def test_a_purpose_that_is_no_prefetch_creates(service: Service) -> None:
    """Only a prefetch is refused, not every request that says what it is for."""
    assert service.create(headers={"Sec-Purpose": "fetch", "Purpose": "download"}).status == 201


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("", 201, id="absent"),
        *[pytest.param(f"redirect={value}", 201, id=f"no-{value}") for value in ("false", "0", "no", "off")],
        *[pytest.param(f"redirect={value}", 201, id=f"no-{value}") for value in ("FALSE", "No", "oFF", "fals%65")],
        *[pytest.param(f"redirect={value}", 303, id=f"yes-{value}") for value in ("true", "1", "yes", "on", "TRUE")],
        *[pytest.param(f"redirect={value}", 303, id=f"yes-{value}") for value in ("2", "nope", "00", "null", "%ff")],
        pytest.param("redirect=", 303, id="empty"),
        pytest.param("redirect", 303, id="bare"),
        pytest.param("x=1&redirect=true", 303, id="not-first"),
        pytest.param("Redirect=true", 201, id="another-name"),
        pytest.param("redirect=false&redirect=true", 201, id="the-first-counts"),
        pytest.param("noredirect=true&xredirect=1", 201, id="longer-names"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_redirect_asks_for_303(service: Service, method: str, query: str, status: int) -> None:
    """Any value of `redirect` but false, 0, no and off turns the 201 into a 303; the invite is made either way."""
    answer = service.create(f"/invites_api?{query}", method=method)
    assert (answer.status, answer.body, answer["Content-Length"]) == (status, b"", "0")
    assert answer.token
    assert service.get_invite(answer.token)


def test_an_empty_body_may_be_declared(service: Service) -> None:
    """A Content-Length of 0 and a Content-Type without a body are what curl and browsers send with a POST."""
    headers = {"Content-Length": "0", "Content-Type": "application/x-www-form-urlencoded"}
    assert service.create(method="POST", headers=headers).status == 201


# JSON


def test_json_is_given_to_who_names_it(service: Service) -> None:
    """With `application/json` in Accept the answer is the invite with all its fields, and the Location as well."""
    answer = service.create(headers={"Accept": "application/json"})
    assert (answer.status, answer["Content-Type"]) == (201, "application/json")
    content = answer.json()
    token = content["token"]
    assert content == {
        "token": token,
        "kind": "register",
        "host": "example.com",
        "jid": "example.com",
        "username": None,
        "registration": True,
        "uri": f"xmpp:example.com?register;preauth={token}",
        "landing_page": f"https://example.com/invite?{token}",
        "created_at": "2026-03-01T12:00:00Z",
        "expires_at": "2026-03-08T12:00:00Z",
        "max_uses": 1,
        "uses": 0,
        "state": "pending",
        "source": f"api/token/{service.issued.key.id}",
        "groups": [],
        "roles": [],
        "note": None,
    }
    in_order = "token kind host jid username registration uri landing_page created_at expires_at max_uses uses state"
    assert list(content) == [*in_order.split(), "source", "groups", "roles", "note"]
    assert answer["Location"] == content["landing_page"]
    assert answer["Content-Length"] == str(len(answer.body))
    assert service.get_invite(token)


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        pytest.param("application/json", True, id="plain"),
        pytest.param("text/plain, application/json;q=0.1", True, id="named-among-others"),
        pytest.param("Application/JSON", True, id="any-case"),
        pytest.param("application/json; charset=utf-8", True, id="parameter"),
        pytest.param("application/json;charset=utf-8;q=0.5", True, id="parameter-and-weight"),
        pytest.param("application/json;q=0", False, id="ruled-out"),
        pytest.param("*/*", False, id="curl"),
        pytest.param("application/*", False, id="wildcard"),
        pytest.param("application/jsonp", False, id="longer"),
        pytest.param("text/html,application/xhtml+xml,*/*;q=0.8", False, id="browser"),
        pytest.param("", False, id="empty"),
    ],
)
def test_only_who_names_json_gets_it(service: Service, accept: str, is_json: bool) -> None:
    """A wildcard asks for no JSON: what a bookmark and curl get stays as Prosody answers."""
    answer = service.create(headers={"Accept": accept})
    assert (answer.status, answer.body != b"") == (201, is_json)


def test_a_redirect_has_no_body_even_for_json(service: Service) -> None:
    """Who asks for the redirect gets it, whatever Accept says."""
    answer = service.create("/invites_api?redirect=1", headers={"Accept": "application/json"})
    assert (answer.status, answer.body) == (303, b"")


def test_a_unicode_host_stands_as_each_link_needs_it(make_service: MakeService) -> None:
    """The host is Unicode in JSON, an A-label in the https link, percent-encoded in the xmpp URI."""
    service = make_service()
    issued = service.keys.create("Bücher.example")
    answer = service.ask(headers={"Authorization": f"Bearer {issued.combined}", "Accept": "application/json"})
    content = answer.json()
    assert content["host"] == content["jid"] == "bücher.example"
    assert answer["Location"].startswith("https://xn--bcher-kva.example/invite?")
    assert content["uri"].startswith("xmpp:b%C3%BCcher.example?register;preauth=")


# Keys


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        pytest.param("Bearer {key}", 201, id="bearer"),
        pytest.param("bearer {key}", 201, id="lower-case"),
        pytest.param("BEARER {key}", 201, id="upper-case"),
        pytest.param("Bearer   {key}  ", 201, id="spaces-around"),
        pytest.param("Bearer\t{key}", 403, id="tab"),
        pytest.param("Bearer", 403, id="no-credentials"),
        pytest.param("Bearer ", 403, id="empty-credentials"),
        pytest.param("", 403, id="empty"),
        pytest.param("{key}", 403, id="no-scheme"),
        pytest.param("Basic {key}", 403, id="basic"),
        pytest.param("Token {key}", 403, id="another-scheme"),
        pytest.param("Bearer {key},Bearer {key}", 403, id="repeated"),
        pytest.param('Bearer "{key}"', 403, id="quoted"),
        pytest.param("Bearer token={key}", 403, id="named"),
        pytest.param("Bearer {key}\xff", 403, id="latin-1"),
        pytest.param("Bearer {id}/{secret}x", 403, id="longer-secret"),
        pytest.param("Bearer {id}/{secret}/", 403, id="second-slash"),
        pytest.param("Bearer {id}%2F{secret}", 403, id="percent-encoded"),
        pytest.param("Bearer {secret}/{id}", 403, id="halves-swapped"),
    ],
)
@pytest.mark.parametrize("query", [pytest.param("", id="no-query"), pytest.param("?key={key}", id="key-in-query")])
def test_the_header_wins(service: Service, authorization: str, status: int, query: str) -> None:
    """An Authorization header decides alone, of whatever scheme: a right key in the query is not looked at."""
    fill = {"key": service.key, "id": service.issued.key.id, "secret": service.issued.secret}
    answer = service.ask(f"/invites_api{query.format(**fill)}", headers={"Authorization": authorization.format(**fill)})
    assert (answer.status, service.count()) == (status, int(status == 201))
    if status == 403:
        assert_refused(answer)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("key={key}", 201, id="plain"),
        pytest.param("key={id}%2f{secret}", 201, id="lower-case-escape"),
        pytest.param("%6bey={key}", 201, id="name-escaped"),
        pytest.param("x&y=&key={key}&", 201, id="among-others"),
        pytest.param("key={key}+", 403, id="plus-is-a-space"),
        pytest.param("key=+{key}", 403, id="leading-space"),
        pytest.param("key={key}%00", 403, id="nul"),
        pytest.param("key={key}%0a", 403, id="newline"),
        pytest.param("key={key}%C3%A9", 403, id="not-ascii"),
        pytest.param("key={key};x=1", 403, id="semicolon"),
        pytest.param("key[]={key}", 403, id="brackets"),
        pytest.param("key", 403, id="bare"),
        pytest.param("key=/{secret}", 403, id="no-id"),
        pytest.param("key={id}/", 403, id="no-secret"),
        pytest.param("key=/", 403, id="slash-alone"),
        pytest.param(f"key={'A' * 128}/{'A' * 126}", 403, id="255-characters"),
        pytest.param(f"key={'A' * 8000}/{'A' * 8000}", 403, id="long"),
        pytest.param("key={key}&key={key}", 400, id="repeated"),
        pytest.param("key={key}&key=", 400, id="repeated-empty"),
        pytest.param("key=&x=1&%6bey={key}", 400, id="repeated-escaped"),
    ],
)
def test_a_key_in_the_query_is_taken_as_it_is(service: Service, query: str, status: int) -> None:
    """The query's key is percent-decoded and then compared whole; one that is given twice is 400."""
    fill = {"key": service.key, "id": service.issued.key.id, "secret": service.issued.secret}
    answer = service.ask(f"/invites_api?{query.format(**fill)}")
    assert (answer.status, service.count()) == (status, int(status == 201))
    if status == 403:
        assert_refused(answer)
    if status == 400:
        assert answer.json()["field"] == "key"
        assert answer.get("WWW-Authenticate") is None


def test_a_repeated_key_is_refused_beside_a_header_too(service: Service) -> None:
    """A request that is wrong in itself stays wrong, also where the header would have been right."""
    answer = service.create("/invites_api?key=a&key=b")
    assert (answer.status, service.count()) == (400, 0)


def test_all_refused_keys_look_alike(service: Service, log: LogBook, hasher: SecretHasher) -> None:
    """Missing, malformed, unknown, wrong, expired, deleted keys, and of another host: one answer; the log tells."""
    store, now = service.store, service.clock.now
    expired = service.keys.create("example.com", expires_in=timedelta(seconds=1))
    deleted = service.keys.create("example.com")
    service.keys.delete("example.com", deleted.key.id)
    # The tag matches and the hash does not: what a planted row would look like.
    planted = make_key(id="planted1", secret_hash=hasher.hash("other"), tag=compute_tag("planted1", "A" * 32))
    store.add_key(planted)
    header_only = service.keys.create("example.com", policy=KeyPolicy(header_only=True))
    service.clock.now = now + timedelta(seconds=2)
    queries = {
        "missing": "",
        "malformed": "?key=no-slash",
        "unknown": "?key=AAAAAAAA/AAAAAAAA",
        "wrong secret": f"?key={service.issued.key.id}/AAAAAAAA",
        "expired": f"?key={expired.combined}",
        "not in the header": f"?key={header_only.combined}",
    }
    answers = [service.ask(f"/invites_api{query}") for query in queries.values()]
    answers.append(service.ask(f"/invites_api?key={deleted.combined}"))
    answers.append(service.ask(f"/invites_api?key=planted1/{'A' * 32}"))
    answers.append(service.ask(headers={"Authorization": "Basic eDp5"}))
    for answer in answers:
        assert_refused(answer)
        content = answer.json()
        del content["request_id"]
        assert content == {
            "type": "invalid-key",
            "title": "The API key is not valid",
            "status": 403,
            "detail": "The API key is not valid.",
        }
    assert len({len(answer.body) for answer in answers}) == 1
    reasons = [entry["reason"] for entry in log.requests]
    assert reasons == [*queries, "unknown", "wrong secret", "other scheme"]
    assert service.count() == 0


def assert_refused(answer: Answer) -> None:
    assert answer.status == 403
    assert answer["WWW-Authenticate"] == 'Bearer realm="invites"'
    assert answer.get("Location") is None


def test_a_key_of_a_host_that_is_no_longer_served_is_refused(make_service: MakeService, log: LogBook) -> None:
    """Taking a host out of the settings stops its keys at once."""
    store = MemoryStore()
    before = make_service(store)
    service = make_service(store, hosts=hosts_of())
    elsewhere = ApiKeys(store).create("other.example")
    assert before.ask(f"/invites_api?key={elsewhere.combined}").status == 201
    assert_refused(service.ask(f"/invites_api?key={elsewhere.combined}"))
    assert log.requests[-1]["reason"] == "host not served"


def test_a_header_only_key_is_taken_in_the_header(service: Service) -> None:
    """A key that must not stand in bookmarks and logs of proxies works where they do not look."""
    issued = service.keys.create("example.com", policy=KeyPolicy(header_only=True))
    assert service.ask(headers={"Authorization": f"Bearer {issued.combined}"}).status == 201
    assert service.ask(f"/invites_api?key={issued.combined}").status == 403


def test_a_deleted_key_is_refused_by_the_next_request(service: Service) -> None:
    """Deleting wins over whatever the process remembers of the key."""
    assert [service.create().status for _ in range(3)] == [201, 201, 201]
    service.keys.delete("example.com", service.issued.key.id)
    assert_refused(service.create())
    assert service.count() == 3


@pytest.mark.parametrize(
    "host", ["other.example", "a..b", "", "x" * 300, "[::1]:80", "127.0.0.1:99999", "a b", "\xff", "/"]
)
@pytest.mark.parametrize("target", ["/invites_api?redirect=1", "/invites_api"])
def test_the_host_header_has_no_say(service: Service, host: str, target: str) -> None:
    """Whatever the Host header is, the key decides about the host of the invite and its link."""
    answer = service.create(target, headers={"Host": host, "X-Forwarded-Host": "evil.example"})
    assert answer.status in (201, 303)
    assert answer["Location"].startswith("https://example.com/invite?")


def test_an_upgrade_has_no_say(service: Service) -> None:
    """A request that offers to change the protocol is answered as if it did not."""
    assert service.create(headers={"Connection": "Upgrade", "Upgrade": "websocket"}).status == 201


# No redirects, no other paths


@pytest.mark.parametrize(
    "path",
    [
        "/invites_api/",
        "//invites_api",
        "/invites_api//",
        "///invites_api/",
        "/x/../invites_api",
        "/./invites_api",
        "/invites_api/x",
        "/invites_apix",
        "/INVITES_API",
        "/invites_api%2f",
        "/invites_api%00",
        "/invites_api;x=1",
        "/invite/",
        "//invite",
        "/healthz/",
        "//healthz",
        "/",
        "//",
        "//evil.example/",
        "/%2e%2e//evil.example",
        "*",
        "",
        "/\xff%ff%fe",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("host", ["127.0.0.1:5280", "evil.example"])
def test_no_path_is_ever_redirected(service: Service, method: str, path: str, host: str) -> None:
    """A path that is nearly right is answered or refused; a redirect would hand the key to whatever Host was named."""
    answer = service.ask(f"{path}?key={service.key}", method=method, headers={"Host": host})
    assert answer.status in (200, 201, 404, 405)
    assert "evil" not in (answer.get("Location") or "")
    assert service.key not in answer.text
    assert service.issued.secret not in str(answer)


def test_an_unknown_path_is_404_and_says_nothing(service: Service) -> None:
    """What is not there is not there, with a key or without, and its name is not repeated."""
    answer = service.create("/<script>alert(1)</script>?x")
    assert (answer.status, answer.json()["detail"]) == (404, "There is nothing here.")
    assert "script" not in answer.text


def test_paths_are_as_the_settings_say(make_service: MakeService) -> None:
    """The API and the page answer where the settings put them, and nowhere else."""
    service = make_service(path="/xmpp/invites_api", landing_path="/join")
    token = service.create("/xmpp/invites_api").token
    assert service.ask(f"/join?{token}").status == 200
    assert service.create("/invites_api").status == service.ask(f"/invite?{token}").status == 404
    assert service.ask("/xmpp/invites_api/x")["Access-Control-Allow-Origin"] == "*"


# CORS


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        pytest.param("/invites_api?key={key}", "GET", 201, id="created"),
        pytest.param("/invites_api?key={key}&redirect", "POST", 303, id="redirect"),
        pytest.param("/invites_api", "GET", 403, id="refused"),
        pytest.param("/invites_api?key=a&key=b", "GET", 400, id="invalid"),
        pytest.param("/invites_api", "PUT", 405, id="method"),
        pytest.param("/invites_api", "HEAD", 405, id="head"),
        pytest.param("/invites_api", "OPTIONS", 200, id="options"),
        pytest.param("/invites_api/", "GET", 404, id="trailing-slash"),
        pytest.param("/invites_api/x/y", "GET", 404, id="below"),
    ],
)
def test_pages_of_any_origin_may_call_the_api(service: Service, target: str, method: str, status: int) -> None:
    """Every answer of the API, refusals too, may be read by any page; credentials of the browser are never taken."""
    answer = service.ask(target.format(key=service.key), method=method, headers={"Origin": "https://app.example"})
    assert answer.status == status
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert {name: answer[name] for name in CORS_HEADERS} == CORS_HEADERS
    assert answer.get("Access-Control-Allow-Credentials") is None
    assert answer.get("Vary") is None


@pytest.mark.parametrize("path", ["/healthz", "/invite?x", "/", "/invites_apix"])
def test_other_paths_have_no_cors(service: Service, path: str) -> None:
    """Only the API is for pages of other origins."""
    answer = service.ask(path, headers={"Origin": "https://app.example"})
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        pytest.param("https://app.example", True, id="first"),
        pytest.param("http://localhost:8080", True, id="second"),
        pytest.param("https://other.example", False, id="another"),
        pytest.param("https://app.example.evil.example", False, id="longer"),
        pytest.param("http://app.example", False, id="another-scheme"),
        pytest.param("https://app.example:444", False, id="another-port"),
        pytest.param("null", False, id="null"),
        pytest.param("*", False, id="star"),
        pytest.param(None, False, id="none"),
    ],
)
@pytest.mark.parametrize("status", [201, 403, 405])
def test_listed_origins_alone_may_read(
    make_service: MakeService, origin: str | None, is_allowed: bool, status: int
) -> None:
    """With origins in the settings each is named to itself alone, and every answer says that it depends on it."""
    service = make_service(cors_origins=("https://app.example", "http://localhost:8080"))
    headers = {} if origin is None else {"Origin": origin}
    if status == 403:
        answer = service.ask(headers=headers)
    else:
        answer = service.create(method="GET" if status == 201 else "HEAD", headers=headers)
    assert answer.status == status
    assert answer.get("Access-Control-Allow-Origin") == (origin if is_allowed else None)
    assert {name: answer.get(name) for name in CORS_HEADERS} == {
        name: value if is_allowed else None for name, value in CORS_HEADERS.items()
    }
    assert answer["Vary"] == "Origin"


# Headers of every answer


EVERY_KIND_OF_ANSWER = [
    pytest.param("/invites_api?key={key}", "GET", 201, id="created"),
    pytest.param("/invites_api?key={key}&redirect=1", "GET", 303, id="redirect"),
    pytest.param("/invites_api", "OPTIONS", 200, id="options"),
    pytest.param("/invites_api?key=a&key=b", "GET", 400, id="400"),
    pytest.param("/invites_api?key=x", "GET", 403, id="403"),
    pytest.param("/nothing?key={key}", "GET", 404, id="404"),
    pytest.param("/invites_api?key={key}", "HEAD", 405, id="405"),
    pytest.param("/healthz", "GET", 200, id="healthz"),
    pytest.param("/invite?nothing", "GET", 404, id="landing"),
]


@pytest.mark.parametrize(("target", "method", "status"), EVERY_KIND_OF_ANSWER)
@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/json"])
def test_every_answer_is_kept_private(service: Service, target: str, method: str, status: int, accept: str) -> None:
    """No answer is cached, sniffed, or tells its URL to another site, and each has the id that the log knows it by."""
    answer = service.ask(target.format(key=service.key), method=method, headers={"Accept": accept})
    assert answer.status == status
    assert answer["Cache-Control"] == "no-store"
    assert answer["Referrer-Policy"] == "no-referrer"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch(r"[0-9a-f]{16}", answer["X-Request-Id"])
    assert answer.get("Set-Cookie") is None


@pytest.mark.parametrize(("target", "method", "status"), EVERY_KIND_OF_ANSWER)
def test_every_answer_keeps_to_the_wsgi_contract(service: Service, target: str, method: str, status: int) -> None:
    """The standard library's checker of PEP 3333 finds nothing wrong with the app."""
    answer = ask(validator(strict_about_headers(service.app)), target.format(key=service.key), method=method)
    assert answer.status == status


def strict_about_headers(app: Any) -> Any:
    """Add a Content-Type where there is none: the checker wants it with an empty body too, unlike RFC 9110."""

    def wrapped(environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            names = {name.lower() for name, _ in headers}
            added = [] if "content-type" in names else [("Content-Type", "text/plain")]
            return start_response(status, headers + added, *rest)

        return app(environ, start)

    return wrapped


def test_request_ids_differ(service: Service) -> None:
    """Each request has an id of its own."""
    assert len({service.ask()["X-Request-Id"] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("given", "proxies", "is_taken"),
    [
        pytest.param("abc-DEF_1.2", 1, True, id="trusted"),
        pytest.param("x" * 64, 3, True, id="longest"),
        pytest.param("abc-DEF_1.2", 0, False, id="nobody-trusted"),
        pytest.param("x" * 65, 1, False, id="too-long"),
        pytest.param("a b", 1, False, id="space"),
        pytest.param("a\x1b[31m", 1, False, id="escape"),
        pytest.param("a\nb", 1, False, id="newline"),
        pytest.param("é", 1, False, id="not-ascii"),
        pytest.param("", 1, False, id="empty"),
    ],
)
def test_a_request_id_is_taken_from_a_trusted_proxy_only(
    make_service: MakeService, log: LogBook, given: str, proxies: int, is_taken: bool
) -> None:
    """A proxy that is trusted may name the request; what anybody else sends is not used."""
    service = make_service(trusted_proxies=proxies)
    answer = service.ask(headers={"X-Request-Id": given})
    assert (answer["X-Request-Id"] == given) == is_taken
    assert answer["X-Request-Id"] == answer.json()["request_id"] == log.requests[-1]["request_id"]


# Health


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_healthz_is_ok_while_the_store_answers(service: Service, method: str) -> None:
    """The health of a service that can do its work is 200, without a key."""
    answer = service.ask("/healthz", method=method)
    assert (answer.status, answer.body) == (200, b"ok\n" if method == "GET" else b"")
    assert answer["Content-Type"].startswith("text/plain")


def test_healthz_is_503_while_the_store_fails(
    make_service: MakeService, log: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not answer makes the service unready; why stands in the log alone."""
    monkeypatch.setattr("invites_wsgi.app.HEALTH_SECONDS", 0.0)
    store = FailingStore()
    service = make_service(store)
    store.failure = StorageError("the database /srv/private/invites.db failed", retry_after=7)
    answer = service.ask("/healthz")
    assert (answer.status, answer["Retry-After"], answer.json()["type"]) == (503, "7", "storage-error")
    assert "/srv" not in answer.text
    assert log.requests[-1]["reason"] == "the database /srv/private/invites.db failed"
    store.failure = StorageBusy()
    assert service.ask("/healthz").json()["type"] == "storage-busy"
    store.failure = None
    assert service.ask("/healthz").status == 200


@pytest.mark.parametrize("failure", [None, StorageError("failed")])
def test_healthz_asks_the_store_at_most_once_a_second(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, failure: StorageError | None
) -> None:
    """However often health is asked for, the store is not, and the answer is the same meanwhile."""
    assert HEALTH_SECONDS == 1.0
    monkeypatch.setattr("invites_wsgi.app.HEALTH_SECONDS", 3600.0)
    store = FailingStore()
    service = make_service(store)
    store.failure = failure
    statuses = {service.ask("/healthz").status for _ in range(50)}
    store.failure = None
    statuses |= {service.ask("/healthz").status}
    assert (statuses, store.pings) == ({200 if failure is None else 503}, 1)
    monkeypatch.setattr("invites_wsgi.app.HEALTH_SECONDS", 0.0)
    assert (service.ask("/healthz").status, store.pings) == (200, 2)


def test_healthz_asks_both_stores(hasher: SecretHasher, clock: FakeClock) -> None:
    """Where keys and invites lie in two stores both have to answer."""
    key_store, invite_store = FailingStore(), FailingStore(StorageError("failed"))
    settings = Settings(database="memory:")
    app = App(settings, key_store=key_store, invite_store=invite_store, hasher=hasher, clock=clock)
    assert ask(app, "/healthz").status == 503
    assert (key_store.pings, invite_store.pings) == (1, 1)


# Mounted in another app, and made from settings


def test_the_app_can_be_mounted_under_a_prefix(service: Service) -> None:
    """Under a prefix of another WSGI app everything answers as it does alone."""
    mounted = DispatcherMiddleware(Response("the outer app"), {"/xmpp": service.app})
    answer = ask(mounted, f"/xmpp/invites_api?key={service.key}")
    assert (answer.status, answer["Access-Control-Allow-Origin"]) == (201, "*")
    assert answer["Location"] == f"https://example.com/invite?{answer.token}"
    assert ask(mounted, f"/xmpp/invite?{answer.token}").status == 200
    assert ask(mounted, "/xmpp/healthz").status == 200
    for path in ("/xmpp", "/xmpp/", "/xmpp/invites_api/"):
        assert ask(mounted, path).status == 404
    assert ask(mounted, "/invites_api").text == "the outer app"


def test_create_app_reads_the_settings(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's factory takes its settings from the environment when it is given none."""
    monkeypatch.setenv("INVITES_DATABASE", f"sqlite:///{database}")
    assert ask(create_app(), "/healthz").status == 200
    monkeypatch.setenv("INVITES_DATABASE", "nonsense:")
    with pytest.raises(SettingsError, match=r"^database: there is no store 'nonsense:'"):
        create_app()


def test_create_app_makes_no_database(tmp_path: Path) -> None:
    """A service that was pointed to the wrong place says so instead of starting empty."""
    path = tmp_path / "invites.db"
    with pytest.raises(StorageError, match=r"^no database at "):
        create_app(Settings(database=f"sqlite:///{path}"))
    assert list(tmp_path.iterdir()) == []


# Whatever comes


targets = st.one_of(
    st.sampled_from(["/invites_api", "/invite", "/healthz", "/", "*", "//invites_api", "/invites_api/x"]),
    st.sampled_from(["/invites_api/key", "/invites_api/invites", "/invites_api/invites/AAAAAAAAAAAAAAAA"]),
    st.sampled_from(["/invites_api/invites/%ff/redeem", "/invites_api/invites/x/release", "/invites_api/openapi.json"]),
    st.text(st.characters(max_codepoint=255), max_size=40),
)
queries = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=60),
    st.from_regex(r"(key|redirect|x)=[%0-9A-Fa-f+/&=;-]{0,40}(&(key|redirect)=[a-z/]{0,9})?", fullmatch=True),
)
header_names = st.sampled_from(
    "Accept Authorization Connection Content-Length Content-Type Cookie Host Origin Purpose Range Sec-Purpose"
    " Transfer-Encoding Upgrade X-Forwarded-For X-Request-Id If-None-Match Expect".split()
)
header_values = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=60),
    st.sampled_from(["Bearer a/b", "application/json", "text/html;q=9", "prefetch", "-1", "chunked", "bytes=0-1"]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.one_of(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]), st.text(st.characters(max_codepoint=255))),
    target=targets,
    query=queries,
    headers=st.dictionaries(header_names, header_values, max_size=5),
    body=st.binary(max_size=20),
)
@example(method="GET", target="/invites_api", query="\x80", headers={}, body=b"")
def test_no_request_makes_the_service_fail(
    service: Service, method: str, target: str, query: str, headers: dict[str, str], body: bytes
) -> None:
    """Whatever a client sends, it is answered, with no 5xx, no redirect, and no invite but for a key."""
    answer = service.ask(f"{target}?{query}", method=method, headers=headers, body=body)
    assert answer.status == 200 or 400 <= answer.status < 500
    assert answer["X-Request-Id"]
    assert service.count() == 0


def test_an_error_of_our_own_says_nothing(make_service: MakeService, log: LogBook) -> None:
    """What should not happen is a 500 that tells its request id and nothing else; the log has the place."""
    store = FailingStore()
    service = make_service(store)
    store.failure = RuntimeError(f"while looking at {service.key} in /srv/private")
    answer = service.create()
    assert answer.status == 500
    assert answer.json() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Something went wrong here; it is in the log.",
        "request_id": answer["X-Request-Id"],
    }
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["Cache-Control"] == "no-store"
    [trace] = [entry["trace"] for entry in log.entries if "trace" in entry]
    assert trace[-1].startswith("RuntimeError: while looking at ")
    assert service.issued.secret not in log.text + log.json
