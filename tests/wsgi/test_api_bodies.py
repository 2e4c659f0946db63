"""Bodies that are not what they must be: each mistake is a 4xx that names its field, and nothing is created."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from werkzeug.test import Client

from invites_core import InvalidRequest
from invites_wsgi import bodies
from tests.wsgi.callers import Caller, make_caller, refused
from tests.wsgi.support import Service, make_environ

LIMIT = 64 * 1024


@pytest.fixture
def caller(service: Service) -> Caller:
    """A program whose key may make anything."""
    return make_caller(service)


REDEEMERS: list[Any] = [1, True, [], {}, "a\0", "\ud800", "x" * 1024]
IDENTITIES: list[Any] = [1, True, [], {}, "", "a b", "a\0", "ä", "\ud800", "x" * 256]
WRONG_TYPES: dict[str, list[Any]] = {
    "kind": [None, 1, True, [], {}, "", "Register", "register\0", "x" * 9999],
    "username": [1, True, [], {}, "", " ", "a b", "a@b", "a/b", "a\0", "\ud800", "x" * 1024, "\u202e"],
    "registration": [None, 0, 1, "true", [], {}],
    "expires_in": [
        1,
        0,
        -1,
        True,
        3.5,
        [],
        {},
        "",
        "7",
        "d",
        "7 d",
        "-1d",
        "0d",
        "1.5d",
        "1y",
        "7D",
        "٧d",
        "9" * 99,
        *("36501d", "999999999999w", "7d\0", "7d "),
    ],
    "max_uses": [0, -1, 1.0, 1.5, True, "1", [], {}, 2**31, 2**63, 10**400],
    "groups": [
        None,
        1,
        True,
        "staff",
        {},
        [None],
        [1],
        [[]],
        [""],
        ["staff", "staff"],
        ["x" * 256],
        ["a\0"],
        *(["\udfff"], ["a"] * 101),
    ],
    "roles": [None, 1, True, "prosody:admin", {}, [None], [1], [{}], [""], ["x" * 256], ["\0"], ["\ud83d"]],
    "note": [1, True, [], {}, "x" * 1001, "a\0b", "\ud800"],
    "count": [None, 0, -1, 1.0, True, "1", [], {}, 1001, 10**400],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{ascii(value)[:24]}")
        for field, values in WRONG_TYPES.items()
        for value in values
    ],
)
def test_a_bad_value_names_its_field(caller: Caller, field: str, value: Any) -> None:
    """Whatever cannot be a field's value is 400 with the field, not 403, 500 or something like it made."""
    answer = caller.send("POST", "", {field: value})
    assert refused(answer) == (400, "invalid-request", field)
    assert caller.service.count() == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"kind": "reset"}, "username", id="reset-of-nobody"),
        pytest.param({"kind": "roster"}, "username", id="roster-of-nobody"),
        pytest.param({"kind": "reset", "username": "a", "max_uses": 2}, "max_uses", id="reset-twice"),
        pytest.param({"kind": "reset", "username": "a", "max_uses": None}, "max_uses", id="reset-for-ever"),
        pytest.param({"kind": "reset", "username": "a", "registration": True}, "registration", id="reset-registers"),
        pytest.param({"kind": "register", "registration": False}, "registration", id="register-does-not"),
        pytest.param({"username": "a", "count": 2}, "count", id="two-for-one-account"),
    ],
)
def test_fields_at_odds_are_refused(caller: Caller, fields: dict[str, Any], field: str) -> None:
    """What each field alone could be and all together cannot is 400 with the field that must change."""
    assert refused(caller.send("POST", "", fields)) == (400, "invalid-request", field)
    assert caller.service.count() == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(b'{"nmae": 1}', "nmae", id="unknown-field"),
        pytest.param(b'{"host": "other.example"}', "host", id="the-key-decides-the-host"),
        pytest.param(b'{"token": "AAAAAAAAAAAAAAAAAAAAAAAA"}', "token", id="token"),
        pytest.param(b'{"Kind": "register"}', "Kind", id="another-case"),
        pytest.param(b'{"": 1}', "''", id="no-name"),
        pytest.param(b'{"a\\u0000b": 1}', r"'a\x00b'", id="name-with-nul"),
        pytest.param(b'{"\\ud800": 1}', r"'\ud800'", id="name-with-half-a-character"),
        pytest.param(b'{"count": 1, "count": 2}', "count", id="given-twice"),
        pytest.param(b'{"note": "a", "no\\u0074e": "b"}', "note", id="given-twice-in-disguise"),
        pytest.param(b'{"x": {"y": 1, "y": 2}}', "y", id="given-twice-within"),
        pytest.param(b"{", "body", id="cut-short"),
        pytest.param(b"{'kind': 'register'}", "body", id="single-quotes"),
        pytest.param(b"{} {}", "body", id="two-documents"),
        pytest.param(b" ", "body", id="blank"),
        pytest.param(b"null", "body", id="null"),
        pytest.param(b"[]", "body", id="list"),
        pytest.param(b'"kind"', "body", id="text"),
        pytest.param(b"1", "body", id="number"),
        pytest.param(b"true", "body", id="true"),
        pytest.param(b'{"max_uses": NaN}', "body", id="nan"),
        pytest.param(b'{"max_uses": Infinity}', "body", id="infinity"),
        pytest.param(b'{"max_uses": -Infinity}', "body", id="minus-infinity"),
        pytest.param(b'{"max_uses": 1e999}', "max_uses", id="too-large-for-a-float"),
        pytest.param(b'{"max_uses": 1' + b"0" * 5000 + b"}", "body", id="more-digits-than-are-read"),
        pytest.param(b'{"note": "\xff"}', "body", id="not-utf-8"),
        pytest.param('{"note": "ä"}'.encode("latin-1"), "body", id="latin-1"),
        pytest.param('{"count": 1}'.encode("utf-16"), "body", id="utf-16"),
        pytest.param(b'\xef\xbb\xbf{"count": 1}', "body", id="byte-order-mark"),
        pytest.param(b'{"note": "a\x00b"}', "body", id="bare-nul"),
        pytest.param(b"[" * 60_000, "body", id="deep-lists"),
        pytest.param(b'{"a":' * 12_000, "body", id="deep-objects"),
        pytest.param(b'{"note": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "body", id="deep-and-whole"),
        pytest.param(b'{"note": ' + b"[" * 400 + b"]" * 400 + b"}", "note", id="not-so-deep"),
    ],
)
def test_what_is_no_such_object_is_refused(caller: Caller, body: bytes, field: str) -> None:
    """A body is one JSON object in UTF-8 with each known field once; anything else is 400 with its field."""
    assert refused(caller.send_bytes("POST", "", body)) == (400, "invalid-request", field)
    assert caller.service.count() == 0


@pytest.mark.parametrize("body", [b"", b"{}", b'{"note": "x"}'], ids=["nothing", "no-field", "a-field"])
def test_a_body_that_ends_early_does_nothing(caller: Caller, body: bytes) -> None:
    """A body that is shorter than was declared is 400, and never stands for the defaults of an empty one."""
    token = caller.make(max_uses=2)["token"]
    before = caller.get(token)
    for path in ("", f"/invites/{token}/redeem", f"/invites/{token}/release"):
        headers = {**caller.bearer, "Content-Type": "application/json", "Content-Length": "60"}
        environ = make_environ("POST", f"/invites_api{path}", headers, body)
        # As gunicorn has it: the stream ends by itself where the client hangs up.
        environ["wsgi.input_terminated"] = True
        _, status, _ = Client(caller.service.app).run_wsgi_app(environ, buffered=True)
        assert status.startswith("400 "), path
    assert caller.service.count() == 1
    assert caller.get(token) == before


class CountedName(str):
    """A name that counts how often names are hashed and compared."""

    __slots__ = ()
    looks = 0

    def __eq__(self, other: object) -> bool:
        CountedName.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        CountedName.looks += 1
        return str.__hash__(self)


def test_a_name_given_twice_among_thousands_is_found_in_one_pass(caller: Caller) -> None:
    """The name that is given twice is the one that is told, and the work does not grow with the square of the names."""
    names = [f"n{number}" for number in range(5_000)]
    repeated = [*names, names[-1]]
    body = "{" + ",".join(f'"{name}":0' for name in repeated) + "}"
    assert refused(caller.send_bytes("POST", "", body.encode())) == (400, "invalid-request", names[-1])
    CountedName.looks = 0
    with pytest.raises(InvalidRequest) as caught:
        bodies._make_object([(CountedName(name), 0) for name in repeated])
    assert caught.value.field == names[-1]
    assert CountedName.looks < 10 * len(repeated)


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(LIMIT, id="64-KiB"),
        pytest.param(LIMIT + 1, id="one-more"),
        pytest.param(LIMIT + 2, id="two-more"),
        pytest.param(LIMIT * 3, id="much-more"),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_has_64_kib_at_most(caller: Caller, length: int, is_chunked: bool) -> None:
    """One byte more is 413, whether or not its length is told beforehand."""
    body = b'{"note": "x"}'.ljust(length)
    environ = make_environ("POST", "/invites_api", {**caller.bearer, "Content-Type": "application/json"}, body)
    if is_chunked:
        del environ["CONTENT_LENGTH"]
        environ.update({"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True})
    environ["wsgi.input"] = io.BytesIO(body)
    chunks, status, _ = Client(caller.service.app).run_wsgi_app(environ, buffered=True)
    content = b"".join(chunks)
    expected = 201 if length <= LIMIT else 413
    assert (int(status[:3]), caller.service.count()) == (expected, int(expected == 201))
    if expected == 413:
        assert json.loads(content)["status"] == 413


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        *("text/json", "application/problem+json", "application/json, text/plain", "*/*"),
    ],
    ids=lambda text: text or "none",
)
def test_a_body_says_that_it_is_json(caller: Caller, content_type: str) -> None:
    """A body of another type is 415, so that no page's form can send one; what is taken stands in Accept-Post."""
    answer = caller.send_bytes("POST", "", b"{}", headers={"Content-Type": content_type})
    assert (answer.status, answer["Accept-Post"], caller.service.count()) == (415, "application/json", 0)


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_may_have_parameters(caller: Caller, content_type: str) -> None:
    """The type is compared as types are: in any case, with whatever parameters."""
    assert caller.send_bytes("POST", "", b"{}", headers={"Content-Type": content_type}).status == 201


@pytest.mark.parametrize(
    ("action", "content", "field"),
    [
        *[
            pytest.param("redeem", {"redeemer": value}, "redeemer", id=f"redeemer-{ascii(value)[:16]}")
            for value in REDEEMERS
        ],
        *[
            pytest.param(action, {"redemption_id": value}, "redemption_id", id=f"{action}-{ascii(value)[:16]}")
            for action in ("redeem", "release")
            for value in IDENTITIES
        ],
        pytest.param("release", {"redemption_id": None}, "redemption_id", id="release-null"),
        pytest.param("release", {}, "redemption_id", id="release-without"),
        pytest.param("release", {"redemption_id": "r1", "redeemer": "a"}, "redeemer", id="release-of-somebody"),
        pytest.param("redeem", {"token": "x"}, "token", id="redeem-unknown"),
        pytest.param("redeem", [], "body", id="redeem-list"),
    ],
)
def test_a_bad_redemption_names_its_field(caller: Caller, action: str, content: Any, field: str) -> None:
    """What is no redeemer or redemption_id is 400 with the field, and the invite stays as it was."""
    token = caller.make()["token"]
    before = caller.get(token)
    answer = caller.send("POST", f"/invites/{token}/{action}", content)
    assert refused(answer) == (400, "invalid-request", field)
    assert caller.get(token) == before


def test_a_release_without_a_body_is_refused(caller: Caller) -> None:
    """An empty body names no redemption."""
    answer = caller.send("POST", f"/invites/{caller.make()['token']}/release")
    assert refused(answer) == (400, "invalid-request", "redemption_id")


@pytest.mark.parametrize("query", ["key=a/b&key=a/b", "key=a/b&key=", "key&key"])
@pytest.mark.parametrize("path", ["", "/key", "/invites"])
def test_a_repeated_key_is_refused(caller: Caller, path: str, query: str) -> None:
    """Two keys in the query are 400, also beside a good one in the header."""
    assert refused(caller.send("GET", f"{path}?{query}")) == (400, "invalid-request", "key")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.sampled_from(list(WRONG_TYPES)) | st.text(max_size=5), json_values, max_size=4))
def test_any_object_is_answered(caller: Caller, content: dict[str, Any]) -> None:
    """Whatever object is sent, it makes what it says or is refused with its field, and there is no 5xx."""
    before = caller.service.count()
    answer = caller.send("POST", "", content)
    if answer.status == 201:
        assert set(content) <= set(WRONG_TYPES)
        assert caller.service.count() > before
    else:
        assert refused(answer)[0] in (400, 403)
        assert "field" in answer.json()
        assert caller.service.count() == before
