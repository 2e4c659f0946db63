"""Free texts that people give: names, notes, groups, roles."""

from __future__ import annotations

from invites_core.errors import InvalidRequest

__all__ = ["check_text"]


def check_text(field: str, text: str | None, *, max_length: int) -> str | None:
    """Check a text that is to be kept.

    Returns:
        The text as it came, None for None.

    Raises:
        InvalidRequest: It is longer than ``max_length`` characters, or holds what cannot be stored everywhere: NUL
            (PostgreSQL) or half of a surrogate pair (UTF-8).
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidRequest(field, "must be a text")
    if len(text) > max_length:
        raise InvalidRequest(field, f"must have at most {max_length} characters, not {len(text)}")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest(field, "must be valid Unicode without NUL")
    return text
