"""The lines of Lua that call an operation inside Prosody, and what they answer.

The functions that they call are sent before, as the prelude. Values travel as base64 of JSON, there and back.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from invites_core.errors import InvalidRequest

__all__ = ["format_line", "parse_result"]

_RESULT: Final = "Result: "


def format_line(verb: str, arguments: Mapping[str, Any]) -> str:
    """Return the line that calls an operation; None among the arguments is left out.

    Raises:
        InvalidRequest: A text is not valid Unicode.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        data = json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("invite", "must be valid Unicode") from error
    return f'> invites_api("{verb}","{base64.b64encode(data).decode()}")'


def parse_result(text: str) -> dict[str, Any] | None:
    """Return what an operation answered, or None where that is no answer of an operation."""
    if not text.startswith(_RESULT):
        return None
    try:
        answer = json.loads(base64.b64decode(text.removeprefix(_RESULT), validate=True))
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
