"""The lines of Lua that call an operation inside Prosody, and what they answer.

The functions that they call are sent before, as the prelude. Values travel as base64 of JSON, there and back.

Prosody 13 ends a stream of which more than 10,000 bytes are in one line, so what is longer goes in pieces: lines that
put a text together in a variable of the session, and one at their end that uses it, which alone does something.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from invites_core.errors import InvalidRequest

__all__ = ["format_call", "format_prelude", "parse_result"]

_RESULT: Final = "Result: "
_PIECE: Final = 8_000
_TEXT: Final = "invites_api_text"


def format_prelude(code: str) -> list[str]:
    """Return the lines that make what the code returns the function that operations are called by."""
    pieces, text = _format_text(code.encode())
    load = 'require "util.envload".envload(require "util.encodings".base64.decode(TEXT), "=invites_api", _G)()'
    return [*pieces, f"> invites_api = {load.replace('TEXT', text)}"]


def format_call(verb: str, arguments: Mapping[str, Any]) -> list[str]:
    """Return the lines that call an operation, of which the last has its result; None as an argument is left out.

    Raises:
        InvalidRequest: A text is not valid Unicode.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        data = json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("invite", "must be valid Unicode") from error
    pieces, text = _format_text(data)
    return [*pieces, f'> invites_api("{verb}",{text})']


def _format_text(data: bytes) -> tuple[list[str], str]:
    """Return the lines that come first, if there is too much for one, and the expression for the base64 of the data."""
    text = base64.b64encode(data).decode()
    if len(text) <= _PIECE:
        return [], f'"{text}"'
    pieces = [f'"{text[start : start + _PIECE]}"' for start in range(0, len(text), _PIECE)]
    return [f"> {_TEXT} = {pieces[0]}", *(f"> {_TEXT} = {_TEXT}..{piece}" for piece in pieces[1:])], _TEXT


def parse_result(text: str) -> dict[str, Any] | None:
    """Return what an operation answered, or None where that is no answer of an operation.

    Rows come after it, each by itself, as one may hold what cannot be read: they are in ``shown``, as bytes.
    """
    if not text.startswith(_RESULT):
        return None
    try:
        told, *rows = [base64.b64decode(piece, validate=True) for piece in text.removeprefix(_RESULT).split(",")]
        answer = json.loads(told.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return {**answer, "shown": rows} if isinstance(answer, dict) else None
