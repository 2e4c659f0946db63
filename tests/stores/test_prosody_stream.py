"""The reader of Prosody's admin stream takes pieces of any size, and ends at whatever is no such stream."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, strategies as st

from invites_core.stores import prosody_stream
from invites_core.stores.prosody_lua import format_call, format_prelude
from invites_core.stores.prosody_prelude import PRELUDE
from invites_core.stores.prosody_stream import ProsodyStream, StreamBroken, StreamResult, format_input

OPENING = (
    b"<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' xml:lang='en'"
    b" xmlns='xmpp:prosody.im/admin' id=''>"
)
xml_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=40)


def read(data: bytes, cuts: list[int]) -> list[StreamResult]:
    """Feed data in pieces that end at these places, and return all results."""
    stream = ProsodyStream()
    results: list[StreamResult] = []
    places = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(places):
        stream.feed(data[start:end])
        while (result := stream.take_result()) is not None:
            results.append(result)
    return results


@given(texts=st.lists(xml_texts, max_size=4), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_pieces_make_no_difference(texts: list[str], cuts: list[int]) -> None:
    """Wherever a stream is cut, the results are the same."""
    body = "".join(f"<repl-output>x</repl-output> <repl-result>{escape(text)}</repl-result>" for text in texts)
    data = OPENING + body.encode()
    assert read(data, [cut for cut in cuts if cut <= len(data)]) == [StreamResult(text, False) for text in texts]


def test_result_is_there_with_its_last_byte() -> None:
    """In pieces of one byte, a result is there as soon as its last byte is."""
    data = OPENING + b"<repl-result>Result: a&amp;b</repl-result>"
    stream = ProsodyStream()
    for byte in data[:-1]:
        stream.feed(bytes([byte]))
        assert stream.take_result() is None
    stream.feed(data[-1:])
    assert stream.take_result() == StreamResult("Result: a&b", False)


def test_error_is_told_from_a_result() -> None:
    """A result that Prosody calls an error is told as one."""
    assert read(OPENING + b"<repl-result type='error'>no</repl-result>", []) == [StreamResult("no", True)]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="no-xml"),
        pytest.param(b"\xff\xfe\x00\x01" * 10, id="binary"),
        pytest.param(b"<stream:stream>", id="no-namespace"),
        pytest.param(b"<stream xmlns='xmpp:prosody.im/admin'>", id="another-stream"),
        pytest.param(OPENING + b"<repl-result>\xff</repl-result>", id="no-utf-8"),
        pytest.param(OPENING + b"<repl-result>\x00</repl-result>", id="nul"),
        pytest.param(OPENING + b"<repl-result></repl-output>", id="badly-nested"),
        pytest.param(OPENING + b"<a>" * 100, id="deep"),
        pytest.param(OPENING + b"</stream:stream>", id="end"),
        pytest.param(b"<!DOCTYPE x>" + OPENING[21:] + b"<repl-result>x</repl-result>", id="doctype"),
        pytest.param(b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + OPENING[21:] + b"<repl-result>&a;</repl-result>", id="entity"),
        pytest.param(OPENING + b"<repl-result>&a;</repl-result>", id="unknown-entity"),
    ],
)
def test_what_is_no_stream_is_refused(data: bytes) -> None:
    """Whatever is not Prosody's stream ends it, whole or in pieces of one byte."""
    with pytest.raises(StreamBroken):
        read(data, [])
    with pytest.raises(StreamBroken):
        read(data, list(range(len(data))))


def test_too_long_an_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has a bound, which begins anew with the next one."""
    monkeypatch.setattr(prosody_stream, "MAX_ANSWER", 1_000)
    stream = ProsodyStream()
    stream.feed(OPENING)
    for _ in range(10):
        stream.feed(b"<repl-result>" + b"x" * 500 + b"</repl-result>")
        assert stream.take_result() is not None
    with pytest.raises(StreamBroken, match="too much"):
        stream.feed(b"<repl-result>" + b"x" * 1_000)


@given(line=xml_texts)
def test_line_arrives_as_it_was(line: str) -> None:
    """What XML gives a meaning to is escaped in a line."""
    sent = format_input(line).replace(b"repl-input", b"repl-result")
    assert read(OPENING + sent, []) == [StreamResult(line, False)]


def test_no_line_is_longer_than_prosody_13_takes() -> None:
    """What is longer than 10,000 bytes goes in several lines, of which the last alone calls something."""
    calls = [format_call("find", {"token": "t" * size}) for size in (10, 5_000, 6_000, 200_000)]
    lines = [format_prelude(PRELUDE), *calls]
    assert [len(one) for one in calls] == [1, 1, 3, 35]
    assert all(len(format_input(line)) < 10_000 for one in lines for line in one)
    assert [line for one in calls for line in one[:-1] if "invites_api(" in line] == []
    text = "".join(line.split('"')[1] for line in calls[-1][:-1])
    assert json.loads(base64.b64decode(text)) == {"token": "t" * 200_000}
