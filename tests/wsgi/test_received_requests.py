"""How far a request has come: never too early for the parser, which does not wait, and never too late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import given, strategies as st

from invites_wsgi.bodies import MAX_BODY
from invites_wsgi.gunicorn_requests import MAX_HEAD, Progress, ReceivedRequest

HEAD: Final = b"POST /invites_api HTTP/1.1\r\nHost: example.com\r\n"
CHUNKED: Final = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def announce(length: int) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % length


WHOLE: Final = {
    "no body": HEAD + b"\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "an empty line before": b"\r\n" + HEAD + b"\r\n",
    "a body": announce(2) + b"{}",
    "a body of nothing": announce(0),
    "the largest body": announce(MAX_BODY) + b"x" * MAX_BODY,
    "another case": HEAD + b"cOnTeNt-LeNgTh:\t2 \r\n\r\n{}",
    "an end within the body": announce(8) + b"\r\n\r\n\r\n\r\n",
    "a chunk": CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    "a chunk with what looks like the last": CHUNKED + b"A\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "an extension": CHUNKED + b'2;name="value"\r\n{}\r\n0\r\n\r\n',
    "trailers": CHUNKED + b"2\r\n{}\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n",
    "no chunk": CHUNKED + b"0\r\n\r\n",
    "many chunks": CHUNKED + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n",
    "the largest chunk": CHUNKED + b"10000\r\n" + b"x" * 0x10000 + b"\r\n0\r\n\r\n",
}


class Sealed:
    """A source for gunicorn's parser that gives what has come and then must not be asked again."""

    def __init__(self, data: bytes) -> None:
        self._pieces: Iterator[bytes] = iter([data])

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise AssertionError("the parser had to wait")


def parse(data: bytes) -> tuple[Any, bytes]:
    """Let gunicorn read a request and its body, from what has come alone."""
    request = next(get_parser(Config(), Sealed(data), ("192.0.2.7", 5280)))
    assert request.body is not None
    return request, request.body.read(MAX_BODY)


def feed(data: bytes, *, step: int) -> tuple[ReceivedRequest, list[Progress]]:
    received = ReceivedRequest()
    return received, [received.add(data[at : at + step]) for at in range(0, len(data), step)]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("step", [1, 3, 8192, 10**6])
def test_a_request_is_ready_with_its_last_byte(name: str, step: int) -> None:
    """However a request is cut, it is waited for until its last byte has come, and no longer."""
    data = WHOLE[name]
    if step < 8192 and len(data) > 8192:
        step = 1021
    _, told = feed(data, step=step)
    assert told == [Progress.WAITING] * (len(told) - 1) + [Progress.READY]


@pytest.mark.parametrize("name", WHOLE)
def test_the_parser_never_waits_for_what_is_ready(name: str) -> None:
    """gunicorn's parser reads request and body from what has come."""
    parse(WHOLE[name])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.booleans(), st.integers(1, 50))
def test_both_see_the_same_end_of_chunks(pieces: list[bytes], has_trailer: bool, step: int) -> None:
    """Whatever is in the chunks, it is ready at the byte where the parser has read the same body."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n"
    data = CHUNKED + body + (b"X-Sum: 1\r\n" if has_trailer else b"") + b"\r\n"
    _, told = feed(data, step=step)
    assert told == [Progress.WAITING] * (len(told) - 1) + [Progress.READY]
    assert parse(data)[1] == b"".join(pieces)


@pytest.mark.parametrize(
    ("head", "block"),
    [
        pytest.param(announce(MAX_BODY + 1), b"", id="announced"),
        pytest.param(announce(10**17), b"", id="announced-far-beyond"),
        pytest.param(CHUNKED, b"1\r\nx\r\n", id="small-chunks"),
        pytest.param(CHUNKED, b"400\r\n" + b"x" * 0x400 + b"\r\n", id="chunks"),
        pytest.param(CHUNKED + b"ffffff\r\n", b"x" * 1000, id="one-chunk"),
        pytest.param(CHUNKED + b"0\r\n", b"X-Sum: 1\r\n", id="trailers"),
    ],
)
def test_a_body_without_an_end_is_ready_soon(head: bytes, block: bytes) -> None:
    """What is too large to be taken is not collected until it ends: three times what is allowed is the most."""
    received = ReceivedRequest()
    progress = received.add(head)
    while progress is Progress.WAITING:
        progress = received.add(block)
    assert progress is Progress.READY
    assert len(received) < 3 * MAX_BODY


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", id="two-lengths"),
        pytest.param(HEAD + b"Content-Length: -5\r\n\r\n", id="negative-length"),
        pytest.param(HEAD + b"Content-Length: 5, 5\r\n\r\n", id="list-of-lengths"),
        pytest.param(HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", id="length-and-chunks"),
        pytest.param(CHUNKED + b"zz\r\n", id="no-size"),
        pytest.param(CHUNKED + b"-2\r\n", id="negative-size"),
        pytest.param(CHUNKED + b"2;" + b"a" * 9000, id="long-extension"),
    ],
)
def test_what_is_odd_is_left_to_the_parser(data: bytes) -> None:
    """What nobody could say the end of is not waited for: the parser refuses it at once."""
    assert ReceivedRequest().add(data) is Progress.READY


def test_a_body_of_very_many_chunks_is_ready_soon() -> None:
    """However small the chunks are, there is a number of them that nobody collects."""
    received = ReceivedRequest()
    assert received.add(CHUNKED + b"1\r\nx\r\n" * 4095) is Progress.WAITING
    assert received.add(b"1\r\nx\r\n") is Progress.READY


def test_a_head_without_an_end_is_too_large() -> None:
    """A head is collected up to a bound, and then there is nothing that the parser could be given."""
    received = ReceivedRequest()
    assert received.add(HEAD + b"X: " + b"x" * (MAX_HEAD - 100)) is Progress.WAITING
    assert received.add(b"x" * 100) is Progress.HEAD_TOO_LARGE


def test_what_waits_to_be_told_to_go_on_is_told_once() -> None:
    """``Expect: 100-continue`` is seen, and is no longer there for the parser, which would answer it once more."""
    received = ReceivedRequest()
    told = received.add(HEAD + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
    assert (told, received.expects_continue) == (Progress.WAITING, True)
    assert received.add(b"{}") is Progress.READY
    assert bytes(received.data) == announce(2) + b"{}"


def test_what_follows_a_request_stays() -> None:
    """Bytes of the next request that came along are handed on with it."""
    received, [progress] = feed(WHOLE["a body"] + HEAD, step=10**6)
    assert progress is Progress.READY
    assert bytes(received.data) == WHOLE["a body"] + HEAD
