"""The resources below /invites_api: who may do what, to which invites, and what is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from invites_core import KeyPolicy
from invites_core.keys import SCOPES, Quota
from tests.wsgi.callers import EVERYTHING, Caller, make_caller, refused
from tests.wsgi.support import Answer, LogBook, Service

UNKNOWN = "A" * 24

ROUTES = {
    "": ("GET, POST, OPTIONS", "create"),
    "/key": ("GET, OPTIONS", None),
    "/invites": ("GET, OPTIONS", "read"),
    "/invites/{token}": ("GET, DELETE, OPTIONS", "read"),
    "/invites/{token}/redeem": ("POST, OPTIONS", "redeem"),
    "/invites/{token}/release": ("POST, OPTIONS", "redeem"),
    "/openapi.json": ("GET, HEAD, OPTIONS", None),
}
REQUESTS = [
    pytest.param("GET", "", "create", id="create"),
    pytest.param("POST", "", "create", id="create-by-post"),
    pytest.param("GET", "/invites", "read", id="list"),
    pytest.param("GET", "/invites/{token}", "read", id="show"),
    pytest.param("DELETE", "/invites/{token}", "revoke", id="revoke"),
    pytest.param("POST", "/invites/{token}/redeem", "redeem", id="redeem"),
    pytest.param("POST", "/invites/{token}/release", "redeem", id="release"),
]
BY_TOKEN = REQUESTS[3:]
BELOW = [*REQUESTS[2:], pytest.param("GET", "/key", None, id="key")]


@pytest.fixture
def caller(service: Service) -> Caller:
    """A program whose key may do anything to its own host's invites."""
    return make_caller(service)


def send(caller: Caller, method: str, path: str, token: str, **options: Any) -> Answer:
    """Send a request that is right in itself."""
    path = path.format(token=token)
    if path.endswith("/release"):
        return caller.send(method, path, {"redemption_id": "r1"}, **options)
    return caller.send(method, path, **options)


# Methods, scopes, credentials


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (path, method)
        for path, (allow, _) in ROUTES.items()
        for method in ("HEAD", "PUT", "PATCH", "DELETE", "GET", "POST", "PROPFIND")
        if method not in allow.split(", ")
    ],
)
def test_other_methods_are_not_allowed(caller: Caller, path: str, method: str) -> None:
    """405 names what is allowed, and nothing happens, least of all by HEAD."""
    allow, _ = ROUTES[path]
    token = caller.make()["token"]
    before = caller.get(token)
    answer = caller.send(method, path.format(token=token))
    assert (answer.status, answer["Allow"], caller.service.count()) == (405, allow, 1)
    assert caller.get(token) == before


@pytest.mark.parametrize("path", ROUTES)
def test_options_needs_no_key(service: Service, path: str) -> None:
    """A browser's preflight request carries no key and is answered with what is allowed."""
    answer = service.ask(f"/invites_api{path.format(token=UNKNOWN)}", method="OPTIONS")
    assert (answer.status, answer["Allow"]) == (200, ROUTES[path][0])
    assert answer["Access-Control-Allow-Methods"] == "GET, POST, DELETE, OPTIONS"


@pytest.mark.parametrize(("method", "path", "scope"), REQUESTS)
def test_each_route_needs_its_scope(caller: Caller, method: str, path: str, scope: str) -> None:
    """A key with every other scope is refused with 403 and the scope that it lacks, and nothing happens."""
    token = caller.make()["token"]
    before = caller.get(token)
    other = make_caller(caller.service, replace(EVERYTHING, scopes=SCOPES - {scope}))
    answer = send(other, method, path, token)
    assert refused(answer)[:2] == (403, "scope-missing")
    assert answer.json()["scope"] == scope
    assert answer.get("WWW-Authenticate") is None
    assert (caller.get(token), caller.service.count()) == (before, 1)


@pytest.mark.parametrize(("method", "path", "scope"), REQUESTS)
def test_a_scope_is_enough_for_its_routes(caller: Caller, method: str, path: str, scope: str) -> None:
    """A key with one scope may do what that scope is for."""
    token = caller.make()["token"]
    other = make_caller(caller.service, replace(EVERYTHING, scopes=frozenset({scope})))
    assert send(other, method, path, token).status in (200, 201, 204)


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer AAAAAAAA/x"}, {"Authorization": "Basic eDp4"}])
@pytest.mark.parametrize(("method", "path", "_scope"), BELOW)
def test_a_bad_key_is_401_below(
    service: Service, method: str, path: str, _scope: str | None, given: dict[str, str]
) -> None:
    """Below /invites_api a missing or wrong key is 401 with the challenge, before anything is looked at."""
    answer = service.ask(f"/invites_api{path.format(token=UNKNOWN)}", method=method, headers=given)
    assert refused(answer)[:2] == (401, "invalid-key")
    assert answer["WWW-Authenticate"] == 'Bearer realm="invites"'
    assert answer["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_bad_key_is_403_where_prosody_answers(service: Service, method: str) -> None:
    """On /invites_api itself it is 403, as Prosody answers."""
    assert service.ask(method=method).status == 403
    assert service.ask("/invites_api?key=AAAAAAAA/x", method=method).status == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "", 403, id="create"),
        pytest.param("GET", "/key", 401, id="key"),
        pytest.param("GET", "/invites", 401, id="list"),
    ],
)
def test_a_key_for_the_header_only(service: Service, log: LogBook, method: str, path: str, status: int) -> None:
    """Such a key is refused as `?key=` and taken in the header."""
    caller = make_caller(service, replace(EVERYTHING, header_only=True))
    answer = service.ask(f"/invites_api{path}?key={caller.issued.combined}", method=method)
    assert refused(answer)[:2] == (status, "invalid-key")
    assert log.requests[-1]["reason"] == "not in the header"
    assert caller.send(method, path).status in (200, 201)


@pytest.mark.parametrize("path", ["/key", "/invites"])
def test_the_key_may_stand_in_the_query_below_too(caller: Caller, path: str) -> None:
    """`?key=` is taken on every resource."""
    assert caller.service.ask(f"/invites_api{path}?key={caller.issued.combined}").status == 200


@pytest.mark.parametrize(("method", "path", "_scope"), BY_TOKEN)
def test_an_invite_of_another_host_is_not_there(caller: Caller, method: str, path: str, _scope: str) -> None:
    """By token a key reaches its own host only: another's invite is 404, like one that was never made."""
    token = caller.make()["token"]
    before = caller.get(token)
    other = make_caller(caller.service, replace(EVERYTHING, all_invites=True), host="other.example")
    foreign, missing = send(other, method, path, token), send(other, method, path, UNKNOWN)
    assert refused(foreign) == refused(missing) == (404, "invite-unknown", None)
    assert {**foreign.json(), "request_id": ""} == {**missing.json(), "request_id": ""}
    assert caller.get(token) == before


@pytest.mark.parametrize(("method", "path", "_scope"), BY_TOKEN)
@pytest.mark.parametrize("token", ["x", "é" * 20, "A" * 300, "..", "%00" * 16], ids=ascii)
def test_what_is_no_token_is_no_invite(caller: Caller, method: str, path: str, _scope: str, token: str) -> None:
    """A path with anything else where the token belongs is 404."""
    assert send(caller, method, path, token).status == 404


def test_another_key_of_the_host_reaches_an_invite_by_its_token(caller: Caller) -> None:
    """Who has the token of an invite of the same host may look at it."""
    assert make_caller(caller.service).get(caller.make()["token"])["source"] == caller.source


# The key


def test_a_key_is_told_what_it_may(service: Service) -> None:
    """/key shows the record without its secrets, the policy and what is left of the quota."""
    policy = replace(EVERYTHING, quota=Quota(5, timedelta(hours=1)))
    caller = make_caller(service, policy)
    caller.send("POST", "", {"count": 2})
    shown = caller.send("GET", "/key").json()
    assert (shown["id"], shown["host"], shown["name"]) == (caller.issued.key.id, "example.com", None)
    assert shown["policy"]["scopes"] == ["create", "read", "redeem", "revoke"]
    assert (shown["policy"]["quota"], shown["policy"]["max_expiry"], shown["policy"]["max_uses"]) == (
        "5/1h",
        "never",
        None,
    )
    assert shown["quota_left"]["count"] == 3
    assert caller.issued.secret not in str(shown)
    service.clock.advance(timedelta(hours=1))
    assert caller.send("GET", "/key").json()["quota_left"]["count"] == 5


def test_a_key_without_a_quota_has_none_left_to_tell(service: Service) -> None:
    """Without a quota `quota_left` is null, and a plain key may ask for it too."""
    caller = make_caller(service, KeyPolicy())
    shown = caller.send("GET", "/key").json()
    assert (shown["quota_left"], shown["policy"]["scopes"]) == (None, ["create"])


# Lists


def tokens_of(answer: Answer) -> list[str]:
    """Return the tokens of a page."""
    return [invite["token"] for invite in answer.json()["invites"]]


def test_a_list_holds_the_key_s_own_invites(caller: Caller) -> None:
    """A key lists what it has made, newest first; one with all_invites lists its host's, and no other host's."""
    service = caller.service
    everything = replace(EVERYTHING, all_invites=True)
    other, admin = make_caller(service), make_caller(service, everything)
    foreigner = make_caller(service, everything, host="other.example")
    made = []
    for one in (caller, other, caller):
        made.append(one.make()["token"])
        service.clock.advance(timedelta(seconds=1))
    assert tokens_of(caller.send("GET", "/invites")) == [made[2], made[0]]
    assert tokens_of(admin.send("GET", "/invites")) == made[::-1]
    assert tokens_of(foreigner.send("GET", "/invites")) == []


def test_a_list_goes_on_with_its_cursor(caller: Caller) -> None:
    """Pages of `limit` follow one another by `next` until it is null, and no cursor holds a token."""
    made = []
    for _ in range(5):
        made.append(caller.make()["token"])
        caller.service.clock.advance(timedelta(seconds=1))
    found, query, pages = [], "", 0
    while True:
        page = caller.send("GET", f"/invites?limit=2{query}")
        found += tokens_of(page)
        pages += 1
        cursor = page.json()["next"]
        if cursor is None:
            break
        assert not any(token in cursor for token in made)
        query = f"&cursor={cursor}"
    assert (found, pages) == (made[::-1], 3)


def test_a_list_of_one_state(caller: Caller) -> None:
    """`state` lists those that are in this state now."""
    tokens = {name: caller.make()["token"] for name in ("used", "revoked", "pending")}
    tokens["expired"] = caller.make(expires_in="1s")["token"]
    caller.send("POST", f"/invites/{tokens['used']}/redeem")
    caller.send("DELETE", f"/invites/{tokens['revoked']}")
    caller.service.clock.advance(timedelta(seconds=2))
    for state, token in tokens.items():
        page = caller.send("GET", f"/invites?state={state}").json()
        assert [(invite["token"], invite["state"]) for invite in page["invites"]] == [(token, state)]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *[
            pytest.param(f"limit={limit}", "limit", id=f"limit-{limit or 'empty'}")
            for limit in ("0", "1001", "-1", "", "x", "1.5", "1e3", "999999999999999999999", "%D9%A1", "+1")
        ],
        pytest.param("state=gone", "state", id="state-none"),
        pytest.param("state=", "state", id="state-empty"),
        pytest.param("cursor=x", "cursor", id="cursor-text"),
        pytest.param("cursor=-1", "cursor", id="cursor-negative"),
        pytest.param("cursor=", "cursor", id="cursor-empty"),
        pytest.param(f"cursor={'9' * 40}", "cursor", id="cursor-huge"),
        pytest.param("cursor=%00", "cursor", id="cursor-nul"),
    ],
)
def test_a_bad_query_names_its_field(caller: Caller, query: str, field: str) -> None:
    """What is no state, limit or cursor is 400 with the field."""
    assert refused(caller.send("GET", f"/invites?{query}")) == (400, "invalid-request", field)


# One invite


def test_an_invite_is_shown_with_its_history(caller: Caller) -> None:
    """All that an admin may know: the state, since when, by whom, and every use with its redeemer."""
    token = caller.make(max_uses=2)["token"]
    caller.send("POST", f"/invites/{token}/redeem", {"redeemer": "alice", "redemption_id": "r1"})
    caller.send("POST", f"/invites/{token}/redeem", {"redeemer": "bob", "redemption_id": "r2"})
    caller.service.clock.advance(timedelta(minutes=1))
    caller.send("POST", f"/invites/{token}/release", {"redemption_id": "r2"})
    caller.send("DELETE", f"/invites/{token}")
    shown = caller.get(token)
    now = caller.service.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (shown["state"], shown["state_since"], shown["revoked_by"], shown["uses"]) == (
        "revoked",
        now,
        caller.source,
        1,
    )
    assert [(use["redemption_id"], use["redeemer"], use["released_at"]) for use in shown["redemptions"]] == [
        ("r1", "alice", None),
        ("r2", "bob", now),
    ]


def test_a_revoked_invite_is_gone_for_who_redeems_it(caller: Caller) -> None:
    """DELETE answers 204 without a body; after it neither a redemption nor another DELETE is possible."""
    token = caller.make()["token"]
    answer = caller.send("DELETE", f"/invites/{token}")
    assert (answer.status, answer.body, answer.get("Content-Type")) == (204, b"", None)
    assert refused(caller.send("POST", f"/invites/{token}/redeem"))[:2] == (410, "invite-revoked")
    assert refused(caller.send("DELETE", f"/invites/{token}"))[:2] == (410, "invite-revoked")


# Redemption


def redeem(caller: Caller, token: str, **content: Any) -> Answer:
    """Redeem an invite."""
    return caller.send("POST", f"/invites/{token}/redeem", content)


def test_a_redemption_without_an_identity_gets_one(caller: Caller) -> None:
    """The answer holds the invite, used, and the redemption_id that was made."""
    answer = caller.send("POST", f"/invites/{caller.make()['token']}/redeem")
    content = answer.json()
    assert (answer.status, set(content)) == (200, {"redemption_id", "invite"})
    assert content["redemption_id"]
    assert (content["invite"]["state"], content["invite"]["uses"]) == ("used", 1)


@pytest.mark.parametrize(
    ("prepare", "content", "expected"),
    [
        pytest.param(lambda c, t: redeem(c, t, redemption_id="x"), {}, (410, "invite-used"), id="used"),
        pytest.param(
            lambda c, _: c.service.clock.advance(timedelta(days=8)), {}, (410, "invite-expired"), id="expired"
        ),
        pytest.param(lambda c, t: c.send("DELETE", f"/invites/{t}"), {}, (410, "invite-revoked"), id="revoked"),
        pytest.param(
            lambda c, t: redeem(c, t, redemption_id="r1", redeemer="bob"),
            {"redemption_id": "r1", "redeemer": "alice"},
            (422, "idempotency-conflict"),
            id="same-id-other-redeemer",
        ),
        pytest.param(
            lambda c, t: c.send("POST", f"/invites/{t}/release", {"redemption_id": "r1"}),
            {"redemption_id": "r1"},
            (409, "redemption-released"),
            id="released-before",
        ),
    ],
)
def test_a_redemption_that_cannot_be(
    caller: Caller,
    prepare: Callable[[Caller, str], object],
    content: dict[str, str],
    expected: tuple[int, str],
) -> None:
    """Each refusal has its status and type, and nothing changes."""
    token = caller.make()["token"]
    prepare(caller, token)
    before = caller.get(token)
    assert refused(redeem(caller, token, **content))[:2] == expected
    assert caller.get(token) == before


def test_another_account_cannot_take_a_named_invite(caller: Caller) -> None:
    """An invite that names its account is 409 to others, and admits that account in any spelling."""
    token = caller.make(username="alice")["token"]
    assert refused(redeem(caller, token, redeemer="bob"))[:2] == (409, "wrong-redeemer")
    assert redeem(caller, token, redeemer="ALICE").status == 200


def test_a_repeated_redemption_takes_no_second_use(caller: Caller) -> None:
    """The same identity and redeemer get the same success, also when the invite is used up or revoked since."""
    token = caller.make()["token"]
    first = redeem(caller, token, redeemer="alice", redemption_id="r1").json()
    assert redeem(caller, token, redeemer="alice", redemption_id="r1").json() == first
    assert caller.get(token)["uses"] == 1


def test_a_released_use_can_be_taken_by_another(caller: Caller) -> None:
    """Release gives the use back, twice is once, and the released identity stays out."""
    token = caller.make()["token"]
    redeem(caller, token, redemption_id="r1")
    for _ in range(2):
        answer = caller.send("POST", f"/invites/{token}/release", {"redemption_id": "r1"})
        assert (answer.status, answer.json()["redemption_id"]) == (200, "r1")
        assert (answer.json()["invite"]["uses"], answer.json()["invite"]["state"]) == (0, "pending")
    assert refused(redeem(caller, token, redemption_id="r1"))[:2] == (409, "redemption-released")
    assert redeem(caller, token, redemption_id="r2").status == 200


# Headers


@pytest.mark.parametrize(("method", "path", "_scope"), [*REQUESTS, BELOW[-1]])
def test_every_answer_is_private(caller: Caller, method: str, path: str, _scope: str | None) -> None:
    """No answer to a request with a key is stored, sniffed or told to another page, and each names the request."""
    answer = send(caller, method, path, caller.make()["token"])
    assert answer.status < 300
    assert (answer["Cache-Control"], answer["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Request-Id"]
    assert answer["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(("method", "path", "_scope"), BY_TOKEN)
def test_the_log_names_the_route(caller: Caller, log: LogBook, method: str, path: str, _scope: str) -> None:
    """The log has the template of the route and the key's id, and no token."""
    token = caller.make()["token"]
    send(caller, method, path, token)
    entry = log.requests[-1]
    expected = f"{method} /invites_api{path.replace('{token}', '<token>')} "
    assert (entry["message"].startswith(expected), entry["key"]) == (True, caller.issued.key.id)
    assert token not in log.text
    assert token not in log.json
