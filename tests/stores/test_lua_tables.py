"""The reader of Prosody's files: it reads what Prosody writes, and refuses the rest in a line, whatever it is."""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from invites_core.stores.lua_tables import MAX_DEPTH, LuaTableError, read_lua_table
from tests.prosody import ConsoleProsody

WRITTEN = rb"""return {
	["6sKjFybZPGnx"] = {
		["allowed_methods"] = {
			["GET"] = true;
			["POST"] = false;
		};
		["created_at"] = 1795484359;
		["name"] = "My \"te\'st\" k\\ey\t\195\188\001";
		["more"] = {
			1.5;
			-1e+20;
			(1/0);
			{};
			[7] = "seven";
		};
	};
};
"""
"""A file as Prosody 0.12.3 wrote it, and what else its serializer can write."""

_ESCAPES = dict(zip(b"\a\b\f\n\r\t\v\\\"'", [rf"\{char}" for char in "abfnrtv\\\"'"], strict=True))


def write_string(text: str) -> str:
    """Write a text as Prosody's serializer does."""
    return '"' + "".join(_write_byte(byte) for byte in text.encode("utf-8", "surrogateescape")) + '"'


def _write_byte(byte: int) -> str:
    if byte in _ESCAPES:
        return _ESCAPES[byte]
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03d}"


def write_value(value: Any, depth: int = 1) -> str:
    """Write a value as Prosody's serializer does."""
    if isinstance(value, dict):
        return write_table(value, depth)
    if isinstance(value, str):
        return write_string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return f"({'-' if value < 0 else ''}1/0)" if math.isinf(value) else f"{value:.18g}"


def write_table(table: dict[Any, Any], depth: int = 1) -> str:
    number, parts = 1, []
    for key, value in table.items():
        is_next = key == number
        number += is_next
        shown = "" if is_next else f"[{write_value(key)}] = "
        parts.append("\n" + "\t" * depth + shown + write_value(value, depth + 1))
    return "{" + (";".join(parts) + ";\n" + "\t" * (depth - 1) if parts else "") + "}"


def write_file(table: dict[Any, Any]) -> bytes:
    return f"return {write_table(table)};\n".encode("ascii")


lua_texts = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
lua_values = st.recursive(
    lua_texts | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans(),
    lambda values: st.dictionaries(lua_texts | st.integers(-5, 5), values, max_size=4),
    max_leaves=20,
)
lua_tables = st.dictionaries(lua_texts | st.integers(-5, 5), lua_values, max_size=5)


def test_what_prosody_writes_is_read() -> None:
    """Every kind of value comes as it was: texts by their bytes, numbers, truth, tables, and numbered values."""
    [(key, row)] = read_lua_table(WRITTEN).items()
    assert key == "6sKjFybZPGnx"
    assert row == {
        "allowed_methods": {"GET": True, "POST": False},
        "created_at": 1795484359,
        "name": 'My "te\'st" k\\ey\tü\x01',
        "more": {1: 1.5, 2: -1e20, 3: math.inf, 4: {}, 7: "seven"},
    }


@given(lua_tables)
def test_what_is_written_comes_back(table: dict[Any, Any]) -> None:
    """Any table of texts of any bytes, numbers, truth and tables is read as it was written."""
    assert read_lua_table(write_file(table)) == table


def test_nan_is_a_number() -> None:
    """What is no number is still read as Prosody writes it."""
    [value] = read_lua_table(b"return { (0/0) };").values()
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.real_server
def test_what_a_real_prosody_serializes_is_read(running_prosody: ConsoleProsody) -> None:
    """All 256 bytes, numbers of every kind, and tables to the depth that it allows come from its own serializer."""
    code = """(function() local all = {}; for i = 0, 255 do all[i + 1] = string.char(i); end
      local deep = {}; local at = deep; for _ = 1, 120 do at.inner = {}; at = at.inner; end
      return base64.encode("return "..require "util.serialization".serialize({
        bytes = table.concat(all), numbers = { 0, -1, 1.5, 2^53, 1e300, 1/0, -1/0, 1e-7, 0.1 },
        truth = { yes = true, no = false }, empty = {}, holes = { [3] = "c", [1] = "a" }, deep = deep })..";\\n");
    end)()"""
    table = read_lua_table(base64.b64decode(running_prosody.evaluate(code)))
    deep: Any = table.pop("deep")
    assert table == {
        "bytes": bytes(range(256)).decode("utf-8", "surrogateescape"),
        "numbers": dict(enumerate([0, -1, 1.5, 2**53, 1e300, math.inf, -math.inf, 1e-7, 0.1], 1)),
        "truth": {"yes": True, "no": False},
        "empty": {},
        "holes": {3: "c", 1: "a"},
    }
    depth = 0
    while deep:
        deep, depth = deep["inner"], depth + 1
    assert depth == 120


@pytest.mark.parametrize(
    ("data", "line", "what"),
    [
        pytest.param(b"", 1, "begin with 'return'", id="empty"),
        pytest.param(b"\n\nos.exit()", 1, "begin with 'return'", id="a-program"),
        pytest.param(b"returns {}", 1, "begin with 'return'", id="another-word"),
        pytest.param(b'return "text"', 1, "a table should begin", id="no-table"),
        pytest.param(b"return {}; os.exit()", 1, "something follows", id="more-after-it"),
        pytest.param(b"return {", 1, "a value should stand", id="cut-short"),
        pytest.param(b'return {\n["a"] = "b";\n["c"] = "d', 3, "a text does not end", id="cut-in-a-text"),
        pytest.param(b'return {\n["a"] = 1 ["b"] = 2 }', 2, "a value should end", id="no-separator"),
        pytest.param(b'return {\n["a"] "b" }', 2, "a key should end", id="no-equals"),
        pytest.param(b'return {\n\n["a" = "b" }', 3, "a key should end", id="no-bracket"),
        pytest.param(b"return {\n[true] = 1 }", 2, "a key must be", id="truth-as-key"),
        pytest.param(b"return {\n[{}] = 1 }", 2, "a key must be", id="table-as-key"),
        pytest.param(b"return {\n[1.5] = 1 }", 2, "a key must be", id="fraction-as-key"),
        pytest.param(b'return {\n["a"] = 1;\n["a"] = 2 }', 3, "stands there twice", id="key-twice"),
        pytest.param(b"return {\n5;\n[1] = 2 }", 3, "stands there twice", id="number-twice"),
        pytest.param(b"return {\nnil }", 2, "a value should stand", id="nil"),
        pytest.param(b"return {\nname = 1 }", 2, "a value should stand", id="bare-key"),
        pytest.param(b"return {\nf() }", 2, "a value should stand", id="call"),
        pytest.param(b'return {\n"a".."b" }', 2, "a value should end", id="joined"),
        pytest.param(b"return {\n[[long]] }", 2, "a value should stand", id="long-text"),
        pytest.param(b"return {\n'a' }", 2, "a value should stand", id="single-quotes"),
        pytest.param(b"return { -- why\n}", 1, "a value should stand", id="comment"),
        pytest.param(b"return {\n0x10 }", 2, "a value should stand", id="hexadecimal"),
        pytest.param(b"return {\n1+1 }", 2, "a value should end", id="sum"),
        pytest.param(b"return {\n" + b"9" * 5000 + b" }", 2, "a value should stand", id="huge-number"),
        pytest.param(b'return {\n"\\256" }', 2, "number of no byte", id="no-byte"),
        pytest.param(b'return {\n"\\x41" }', 2, "a text does not end", id="another-escape"),
        pytest.param(b'return {\n"a\nb" }', 2, "a text does not end", id="line-in-a-text"),
        pytest.param(b'return {\n"\0" }', 2, "a text does not end", id="nul"),
        pytest.param(b"\x1bLuaS\0", 1, "begin with 'return'", id="compiled-lua"),
        pytest.param(b"return " + b"{" * (MAX_DEPTH + 1) + b"}" * (MAX_DEPTH + 1), 1, "too deep", id="too-deep"),
        pytest.param(b"return " + b"{" * 1_000_000, 1, "too deep", id="far-too-deep"),
    ],
)
def test_anything_else_is_refused_by_line(data: bytes, line: int, what: str) -> None:
    """What Prosody does not write is refused, with the line, and with nothing of what stands there."""
    with pytest.raises(LuaTableError, match=re.escape(what)) as caught:
        read_lua_table(data)
    assert caught.value.line == line


def test_tables_at_the_bound_are_read() -> None:
    """As many tables in one another as Prosody writes are no mistake."""
    assert read_lua_table(b"return " + b"{" * MAX_DEPTH + b"}" * MAX_DEPTH)


@given(lua_tables, st.data())
def test_a_damaged_file_is_read_or_refused(table: dict[Any, Any], data: st.DataObject) -> None:
    """Whatever becomes of a file, what comes out is a table or a mistake with a line that the file has."""
    written = bytearray(write_file(table))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(written)))
        size = data.draw(st.integers(0, 6))
        written[at : at + size] = data.draw(st.binary(max_size=3) | st.sampled_from([b"{", b"}", b'"', b"[", b"\\"]))
    assert_read_or_refused(bytes(written))


@given(st.binary(max_size=200) | st.text("return{}[]\";=\\0123e+-./, \n'txn", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """So it is with bytes that never were a file of Prosody's."""
    assert_read_or_refused(data)
    assert_read_or_refused(b"return {" + data + b"}")


def assert_read_or_refused(data: bytes) -> None:
    try:
        assert isinstance(read_lua_table(data), dict)
    except LuaTableError as error:
        assert 1 <= error.line <= data.count(b"\n") + 1
