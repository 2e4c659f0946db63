"""What goes over the agent's wire comes out as it went in, and nothing else comes in."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from invites_core import errors
from invites_core.errors import InvalidRequest, InvitesError, OutcomeUnknown, StorageError
from invites_core.invites import Invite, Redemption
from invites_core.store import InvitePage, InviteStore, RedeemResult, Sweep
from invites_core.stores.agent_records import (
    INVITE,
    INVITES,
    MAX_LIST,
    PAGE,
    REDEEMED,
    REDEMPTION,
    SWEEP,
    TEXT,
    Malformed,
)
from invites_core.stores.agent_wire import (
    HELLO,
    MAX_FRAME,
    VERBS,
    FrameSocket,
    Welcome,
    decode_error,
    decode_frame,
    decode_hello,
    decode_request,
    decode_welcome,
    encode_error,
    encode_frame,
    encode_request,
    encode_welcome,
)
from tests.helpers import NOON, PATIENCE, invites_of_any_kind, make_invite, texts, times
from tests.wsgi.support import get_sample_errors

redemptions = st.builds(
    Redemption,
    token=texts,
    redemption_id=texts,
    redeemer=st.none() | texts,
    redeemed_at=st.none() | times,
    released_at=st.none() | times,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
FROZEN = (
    b'\x00\x00\x01\x85{"verb":"add_invites","arguments":{"invites":[{"token":"MDEyMzQ1Njc4OWFiY2RlZmdo","host":'
    b'"b\\u00fccher.example","kind":"register","username":null,"registration":true,"created_at":1772366400,'
    b'"expires_at":1772971200,"max_uses":1,"uses":0,"source":"command","groups":["staff"],"roles":[],"note":null,'
    b'"closed_at":null,"revoked_by":null},{"token":"aGdmZWRjYmE5ODc2NTQzMjEw"}],"if_absent":false}}'
)
"""Version 1 of the protocol."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, FrameSocket]]:
    """A bare socket, and what receives frames from it."""
    bare, other = socket.socketpair()
    bare.settimeout(PATIENCE)
    framed = FrameSocket(other)
    with bare:
        yield bare, framed
    framed.close()


def in_time() -> float:
    """Return a deadline that is never over."""
    return time.monotonic() + PATIENCE


def over_the_wire(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a peer makes of a frame."""
    return decode_frame(encode_frame(content)[4:])


@given(invite=invites_of_any_kind)
def test_any_invite_goes_over_the_wire(invite: Invite) -> None:
    """Whatever is in the fields of an invite, it comes out as it went in."""
    assert INVITE.decode(over_the_wire({"": INVITE.encode(invite)})[""]) == invite


@given(invites=st.lists(invites_of_any_kind, max_size=5), cursor=st.none() | texts)
def test_any_page_goes_over_the_wire(invites: list[Invite], cursor: str | None) -> None:
    """A part of a list comes out as it went in, however different its invites are."""
    page = InvitePage(invites=tuple(invites), next=cursor)
    assert PAGE.decode(over_the_wire(PAGE.encode(page))) == page


@given(redemption=redemptions)
def test_any_redemption_goes_over_the_wire(redemption: Redemption) -> None:
    """Whatever is in the fields of a redemption, it comes out as it went in."""
    assert REDEMPTION.decode(over_the_wire(REDEMPTION.encode(redemption))) == redemption


@pytest.mark.parametrize("outcome", ["redeemed", "repeated", "conflict", "released", "refused"])
@pytest.mark.parametrize("invite", [pytest.param(None, id="none"), pytest.param(make_invite(), id="invite")])
def test_results_go_over_the_wire(outcome: Any, invite: Invite | None) -> None:
    """What became of a redemption comes out as it went in."""
    result = RedeemResult(outcome=outcome, invite=invite)
    assert REDEEMED.decode(over_the_wire(REDEEMED.encode(result))) == result
    assert SWEEP.decode(over_the_wire(SWEEP.encode(Sweep(changed=7, next="9")))) == Sweep(changed=7, next="9")


def test_every_field_of_an_invite_goes_over_the_wire() -> None:
    """No field is forgotten but the link, which no store keeps."""
    assert INVITE.encode(make_invite()).keys() == {one.name for one in fields(Invite)} - {"landing_page"}
    assert REDEMPTION.encode(Redemption(token="t", redemption_id="r", redeemer=None, redeemed_at=NOON)).keys() == {
        one.name for one in fields(Redemption)
    }


def test_the_verbs_are_those_of_an_invite_store() -> None:
    """An agent can be asked for what an invite store does, and for nothing else."""
    methods = {name for name in dir(InviteStore) if not name.startswith("_")}
    assert VERBS.keys() == methods - {"features", "location", "close"}


def test_requests_are_frozen() -> None:
    """A request of version 1 has these bytes, for ever."""
    first = make_invite(token="MDEyMzQ1Njc4OWFiY2RlZmdo", host="bücher.example", groups=("staff",))
    second = replace(first, token="aGdmZWRjYmE5ODc2NTQzMjEw")
    arguments = {"invites": [first, second], "if_absent": False}
    assert encode_frame(encode_request("add_invites", arguments)) == FROZEN
    assert decode_request(decode_frame(FROZEN[4:])) == ("add_invites", {**arguments, "invites": (first, second)})
    assert encode_frame(HELLO)[4:] == b'{"protocol":"invites-api agent","version":1}'


def test_invites_that_are_alike_take_little_room() -> None:
    """A thousand invites with the longest notes and many groups, made by one request, fit in one frame."""
    first = make_invite(note="ü" * 1000, groups=tuple(f"{number:0255}" for number in range(100)))
    many = [replace(first, token=f"{number:024}") for number in range(MAX_LIST)]
    assert len(encode_frame({"": INVITES.encode(many)})) < 100_000
    assert INVITES.decode(INVITES.encode(many)) == tuple(many)


def test_more_invites_than_a_frame_holds_are_refused() -> None:
    """A list has at most a thousand, and one of other things than objects is none."""
    encoded = INVITES.encode([make_invite() for _ in range(MAX_LIST + 1)])
    wrongs: list[Any] = [encoded, [encoded[0], 1], [1, encoded[0]], {}, None, [encoded[1]]]
    for wrong in wrongs:
        with pytest.raises(Malformed):
            INVITES.decode(wrong)


GOOD = INVITE.encode(make_invite(username="alice", note="n", groups=("g",), closed_at=NOON, revoked_by="admin"))
NO_TEXT = [1, True, [], {}, 1.5, "\ud800", "x" * 20_000]
NO_TIME = [-1, True, 1.0, "1", 2**40, 253_402_300_800, [], {}]
NO_COUNT = [-1, True, 1.0, "1", 2**63, [], {}]
WRONG: dict[str, list[Any]] = {
    **{name: [*NO_TEXT, None] for name in ("token", "host", "source", "kind")},
    "kind": ["", "REGISTER", "admin", None, 1, []],
    **dict.fromkeys(("username", "note", "revoked_by"), NO_TEXT),
    "registration": [0, 1, None, "true", []],
    "created_at": [*NO_TIME, None],
    "expires_at": NO_TIME,
    "closed_at": NO_TIME,
    "max_uses": [*NO_COUNT, 0],
    "uses": [*NO_COUNT, None],
    **{name: ["a", {}, None, 1, [1], [None], [["a"]], ["\udfff"], ["a"] * 1001] for name in ("groups", "roles")},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{number}") for name in WRONG for number, value in enumerate(WRONG[name])],
)
def test_a_field_that_cannot_be_is_refused_and_named(name: str, value: Any) -> None:
    """Each field of an invite is checked; the error names it and repeats nothing."""
    with pytest.raises(Malformed) as caught:
        INVITE.decode({**GOOD, name: value})
    assert caught.value.field.partition(".")[0] == name
    assert "x" * 10 not in str(caught.value)


def test_wrong_values_are_tried_for_every_field() -> None:
    """No field of an invite is left out above."""
    assert WRONG.keys() == GOOD.keys()


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_refused(name: str) -> None:
    """There is no default on the wire; nor is a field let through that is not known."""
    with pytest.raises(Malformed, match=f"^{name}: is missing$"):
        INVITE.decode({key: value for key, value in GOOD.items() if key != name})
    with pytest.raises(Malformed, match="not known"):
        INVITE.decode({**GOOD, f"{name}2": None})


@given(value=json_values)
def test_no_other_json_is_an_invite_or_a_request(value: Any) -> None:
    """Whatever else a peer sends is refused as that, and as nothing else."""
    for decode in (INVITE.decode, INVITES.decode, PAGE.decode, REDEEMED.decode, decode_error):
        if value != []:
            with pytest.raises(Malformed):
                decode(value)
    if isinstance(value, dict):
        for decode in (decode_request, decode_hello, decode_welcome):
            with pytest.raises(Malformed):
                decode(value)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="broken"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"a":NaN}', id="nan"),
        pytest.param(b'{"a":-Infinity}', id="infinity"),
        pytest.param(b'{"a":1,"a":2}', id="name-twice"),
        pytest.param(b'{"a":"\xff"}', id="not-utf-8"),
        pytest.param('{"a":1}'.encode("utf-16"), id="utf-16"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', id="byte-order-mark"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", id="endless-number"),
        pytest.param(b"\x80\x04N.", id="pickle"),
    ],
)
def test_what_is_no_object_of_json_is_refused(body: bytes) -> None:
    """A frame holds one object of JSON, in UTF-8, that every reader takes for the same."""
    with pytest.raises(Malformed):
        decode_frame(body)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({}, id="empty"),
        pytest.param({"verb": "ping"}, id="no-arguments"),
        pytest.param({"verb": "ping", "arguments": {}, "id": 1}, id="more"),
        pytest.param({"verb": "close", "arguments": {}}, id="not-served"),
        pytest.param({"verb": "__class__", "arguments": {}}, id="inner"),
        pytest.param({"verb": "find_key", "arguments": {"key_id": "a"}}, id="keys"),
        pytest.param({"verb": ["ping"], "arguments": {}}, id="no-name"),
    ],
)
def test_what_is_no_request_is_refused(content: dict[str, Any]) -> None:
    """A request has a verb of the table, its arguments, and nothing else."""
    with pytest.raises(Malformed):
        decode_request(content)


@pytest.mark.parametrize(
    ("verb", "arguments", "field"),
    [
        pytest.param("find_invite", {}, "token", id="missing"),
        pytest.param("find_invite", {"token": "a", "path": "/etc"}, "arguments", id="unknown"),
        pytest.param("ping", [], "arguments", id="list"),
        pytest.param("purge_invites", {"before": 1, "limit": 0, "cursor": None}, "limit", id="limit-0"),
        pytest.param("purge_invites", {"before": 1, "limit": 1001, "cursor": None}, "limit", id="limit-1001"),
        pytest.param("add_invites", {"invites": [{**GOOD, "uses": "1"}], "if_absent": True}, "invites.uses", id="deep"),
    ],
)
def test_arguments_that_cannot_be_are_named(verb: str, arguments: Any, field: str) -> None:
    """An argument that a verb does not take is an InvalidRequest of its field."""
    with pytest.raises(InvalidRequest) as caught:
        decode_request({"verb": verb, "arguments": arguments})
    assert caught.value.field == field


def test_another_version_is_refused() -> None:
    """Both ends take their own version alone, and say which."""
    welcome = Welcome(features=frozenset({"history"}), location="memory")
    assert decode_welcome(over_the_wire(encode_welcome(welcome))) == welcome
    decode_hello(over_the_wire(HELLO))
    for decode, content in ((decode_hello, dict(HELLO)), (decode_welcome, encode_welcome(welcome))):
        with pytest.raises(Malformed, match="version: must be 1, and not 2: update both"):
            decode({**content, "version": 2})
        with pytest.raises(Malformed, match="protocol"):
            decode({**content, "protocol": "HTTP"})


OF_STORES = (
    "InviteExists",
    "InvalidRequest",
    "InvalidHost",
    "StorageError",
    "StorageBusy",
    "OutcomeUnknown",
    "CorruptRecord",
    "Unsupported",
)


@pytest.mark.parametrize("name", OF_STORES)
def test_errors_of_a_store_go_over_the_wire(name: str) -> None:
    """An error comes out as the class that it was, with its message and its attributes."""
    error = get_sample_errors().get(name) or errors.InviteExists("there")
    if isinstance(error, StorageError):
        error.retry_after = 17
    if isinstance(error, OutcomeUnknown):
        error.redemption_id = "choir-1"
    came = decode_error(over_the_wire({"error": encode_error(error)})["error"])
    assert type(came) is type(error)
    assert str(came) == str(error)
    assert vars(came) == vars(error)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"class": "SystemExit"}, id="builtin"),
        pytest.param({"class": "InvitesError"}, id="root"),
        pytest.param({"class": "InvalidKey"}, id="of-keys"),
        pytest.param({"retry_after": None}, id="no-time"),
        pytest.param({"retry_after": -1}, id="negative"),
        pytest.param({"message": 1}, id="no-text"),
        pytest.param({"more": 1}, id="more"),
    ],
)
def test_no_other_class_is_raised_for_a_peer(change: dict[str, Any]) -> None:
    """What is raised is of a fixed table; a name in a frame makes nothing else."""
    with pytest.raises(Malformed):
        decode_error({**encode_error(StorageError("failed")), **change})


def test_an_error_of_another_class_is_a_storage_error() -> None:
    """A subclass goes over the wire as what it is a kind of."""

    class DiskGone(StorageError):
        pass

    assert encode_error(DiskGone("gone"))["class"] == "StorageError"
    assert encode_error(InvitesError("odd"))["class"] == "StorageError"


def test_frames_come_whole_however_they_are_cut(ends: tuple[socket.socket, FrameSocket]) -> None:
    """Frames arrive one by one, whether their bytes come singly or several frames at once."""
    bare, framed = ends
    contents = [{"a": number} for number in range(5)]
    stream = b"".join(map(encode_frame, contents))
    for step in (1, 3, len(stream)):
        for start in range(0, len(stream), step):
            bare.sendall(stream[start : start + step])
        received = [framed.receive(by=in_time()) for _ in contents]
        assert [decode_frame(body or b"") for body in received] == contents
    bare.close()
    assert framed.receive(by=in_time()) is None


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1, 2**31, 2**32 - 1])
def test_a_frame_beyond_the_bound_is_refused_before_it_is_read(
    ends: tuple[socket.socket, FrameSocket], size: int
) -> None:
    """The length alone decides: nothing is kept of a frame that is too long, or empty."""
    bare, framed = ends
    bare.sendall(size.to_bytes(4, "big"))
    with pytest.raises(Malformed, match=f"from 1 to {MAX_FRAME} bytes"):
        framed.receive(by=in_time())


def test_the_longest_frame_is_taken(ends: tuple[socket.socket, FrameSocket]) -> None:
    """A frame may be as long as the bound, and no longer is made."""
    _, framed = ends
    longest = encode_frame({"a": "x" * (MAX_FRAME - 8)})
    assert len(longest) == MAX_FRAME + 4
    with pytest.raises(Malformed):
        encode_frame({"a": "x" * (MAX_FRAME - 7)})
    framed._received += longest
    assert framed.receive(by=in_time()) == longest[4:]


@pytest.mark.parametrize("sent", [b"\0", b"\0\0\0\7", b"\0\0\0\7{"])
def test_half_a_frame_is_refused(ends: tuple[socket.socket, FrameSocket], sent: bytes) -> None:
    """A stream that breaks off within a frame is no end between two."""
    bare, framed = ends
    bare.sendall(sent)
    bare.close()
    with pytest.raises(Malformed, match="half a frame"):
        framed.receive(by=in_time())


def test_a_frame_has_its_time_in_all(ends: tuple[socket.socket, FrameSocket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that come one by one, each in time, do not hold a reader longer than a frame may take."""
    bare, framed = ends
    now = [0.0]

    class Drip:
        def settimeout(self, seconds: float) -> None:
            assert 0 < seconds <= 10

        def recv(self, size: int) -> bytes:
            now[0] += 0.9
            return b"\0"

        def __getattr__(self, name: str) -> Any:
            return getattr(bare, name)

    monkeypatch.setattr("invites_core.stores.agent_wire.time.monotonic", lambda: now[0])
    dripping = FrameSocket(Drip())  # type: ignore[arg-type]  # it has what is used
    dripping._received += (1000).to_bytes(4, "big")
    with pytest.raises(TimeoutError):
        dripping.receive(by=5, within=10)
    assert now[0] < 12
    assert framed is not None


def test_times_keep_their_range() -> None:
    """The first and the last second that a calendar has go over the wire."""
    last = NOON.replace(year=9999, month=12, day=31, hour=23, minute=59, second=59)
    for moment in (NOON.replace(year=1970, month=1, day=1, hour=0), last, NOON - timedelta(seconds=1)):
        invite = make_invite(created_at=moment, expires_at=moment)
        assert INVITE.decode(json.loads(json.dumps(INVITE.encode(invite)))) == invite
    assert TEXT.decode("\U0001f600\0") == "\U0001f600\0"
