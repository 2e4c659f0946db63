r"""Reads a table as Prosody writes it into its files, and nothing else of Lua.

What its serializer writes is ``return``, a table and ``;``. In a table stand ``["key"] = value;`` and plain values,
which are numbered from 1. A value is a text in double quotes, a number, ``true``, ``false`` or a table. Texts are
bytes, with ``\n`` and the like and ``\ddd`` in decimal; here they are strings, in which bytes that are no UTF-8 are
lone surrogates (``surrogateescape``). Nothing is ever run: a file may come from anywhere.
"""

from __future__ import annotations

import math
import re
from typing import Final, TypeAlias

__all__ = ["MAX_DEPTH", "LuaTable", "LuaTableError", "LuaValue", "read_lua_table"]

LuaTable: TypeAlias = "dict[str | int, LuaValue]"
LuaValue: TypeAlias = "str | int | float | bool | LuaTable"

MAX_DEPTH: Final = 127
"""How many tables may lie in one another; Prosody itself writes no more."""

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_STRING: Final = re.compile(rb'"((?:[^"\\\x00-\x1f\x7f]|\\(?:[abfnrtv\\"\']|[0-9]{1,3}))*+)"')
_ESCAPE: Final = re.compile(rb"\\([0-9]{1,3}|.)")
_NUMBER: Final = re.compile(rb"-?[0-9]{1,20}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,3})?")
_WORD: Final = re.compile(rb"[A-Za-z0-9_.]+")
_WORDS: Final[dict[bytes, bool]] = {b"true": True, b"false": False}
_DIVISIONS: Final = {b"(1/0)": math.inf, b"(-1/0)": -math.inf, b"(0/0)": math.nan}
_CONTROLS: Final = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))


class LuaTableError(ValueError):
    """What was read is no table as Prosody writes it.

    Attributes:
        line: Where, counted from 1.
        what: What is wrong there, with nothing of what stands there.
    """

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.what = what


def read_lua_table(data: bytes) -> LuaTable:
    """Return the table in what Prosody's serializer has written after ``return``.

    Args:
        data: The whole file; its caller bounds its size.

    Raises:
        LuaTableError: It is anything else, or a key stands twice in one table.
    """
    reader = _Reader(data)
    if reader.take_word() != b"return":
        raise reader.fail("does not begin with 'return'", at=0)
    table = reader.take_table(1)
    reader.take(b";")
    reader.skip_space()
    if not reader.is_at_end():
        raise reader.fail("something follows the table")
    return table


class _Reader:
    """A place in the data, from which one thing after the other is taken."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fail(self, what: str, *, at: int | None = None) -> LuaTableError:
        place = self._at if at is None else at
        return LuaTableError(self._data.count(b"\n", 0, place) + 1, what)

    def skip_space(self) -> None:
        self._at = self._match(_SPACE).end()

    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, mark: bytes) -> bool:
        """Take a mark if it is next, and tell whether it was."""
        self.skip_space()
        found = self._data.startswith(mark, self._at)
        self._at += len(mark) if found else 0
        return found

    def take_word(self) -> bytes:
        self.skip_space()
        found = _WORD.match(self._data, self._at)
        if found is None:
            return b""
        self._at = found.end()
        return found[0]

    def take_table(self, depth: int) -> LuaTable:
        if not self.take(b"{"):
            raise self.fail("a table should begin here")
        if depth > MAX_DEPTH:
            raise self.fail("tables lie too deep in one another")
        table: LuaTable = {}
        number = 1
        while not self.take(b"}"):
            place = self._at
            key: str | int = number
            if self.take(b"["):
                key = self._take_key()
            else:
                number += 1
            if key in table:
                raise self.fail("the same key stands there twice", at=place)
            table[key] = self._take_value(depth)
            if not self.take(b";") and not self.take(b","):
                if not self.take(b"}"):
                    raise self.fail("a value should end here, or its table")
                break
        return table

    def _take_key(self) -> str | int:
        self.skip_space()
        place = self._at
        key = None if self._data.startswith(b"{", place) else self._take_value(MAX_DEPTH)
        # In Python true is 1; to Lua they are two keys.
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise self.fail("a key must be a text or a whole number", at=place)
        if not (self.take(b"]") and self.take(b"=")):
            raise self.fail("a key should end here, and '=' follow")
        return key

    def _take_value(self, depth: int) -> LuaValue:
        self.skip_space()
        if self._data.startswith(b'"', self._at):
            return self._take_string()
        if self._data.startswith(b"{", self._at):
            return self.take_table(depth + 1)
        for text, value in _DIVISIONS.items():
            if self.take(text):
                return value
        found = _NUMBER.match(self._data, self._at)
        if found is not None and not _WORD.match(self._data, found.end()):
            self._at = found.end()
            return float(found[0]) if found[1] or found[2] else int(found[0])
        place = self._at
        word = self.take_word()
        if word not in _WORDS:
            raise self.fail("a value should stand here: a text, a number, true, false or a table", at=place)
        return _WORDS[word]

    def _take_string(self) -> str:
        found = _STRING.match(self._data, self._at)
        if found is None:
            raise self.fail("a text does not end, or holds what Prosody would have written otherwise")
        text = _ESCAPE.sub(self._unescape, found[1]) if b"\\" in found[1] else found[1]
        self._at = found.end()
        return text.decode("utf-8", "surrogateescape")

    def _unescape(self, match: re.Match[bytes]) -> bytes:
        escape = match[1]
        if escape.isdigit():
            if int(escape) > 255:
                raise self.fail("a text holds the number of no byte")
            return bytes((int(escape),))
        return bytes((_CONTROLS.get(escape[0], escape[0]),))

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        found = pattern.match(self._data, self._at)
        assert found is not None, "a pattern that matches nothing too"  # noqa: S101 (for mypy alone)
        return found
