"""Checks of single values in the settings: each returns the value as the program takes it, or raises what is wrong."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from invites_core.durations import parse_duration
from invites_core.invites import check_landing_template
from invites_core.stores import parse_socket_path, parse_sqlite_path

__all__ = ["CHECKS", "HOST_CHECKS", "HOST_PAGE_CHECKS", "PAGE_CHECKS", "SettingsError", "check_table"]

_COLOR: Final = re.compile(r"#[0-9A-Fa-f]{6}", re.ASCII)
_LINK: Final = re.compile(r"""([a-z][a-z0-9+.-]*):[^\x00-\x20"<>\x7f-\U0010ffff]+""", re.ASCII | re.IGNORECASE)
_CONTACT: Final = re.compile(
    r"mailto:[!-~]+@[!-~]+|https?://[0-9a-z[][!-~]*|xmpp:[!-~]+|tel:\+?[0-9-]+", re.ASCII | re.IGNORECASE
)
_HARMFUL: Final = frozenset(
    {"about", "blob", "data", "file", "filesystem", "jar", "javascript", "vbscript", "view-source"}
)
"""The schemes of links that run something or show what is on the visitor's disk."""

MAX_LINK: Final = 400
MAX_PROXIES: Final = 16
MAX_WORKERS: Final = 256
MAX_THREADS: Final = 256


class SettingsError(Exception):
    """A mistake in the settings, in one line that names it."""


def check_table(value: object) -> Mapping[str, Any]:
    """Return a table of the file.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    return value


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text in quotes")
    if any(char < " " or char == "\x7f" for char in value):
        raise ValueError("must hold no control characters")
    return value


def _check_whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return check


def _check_one_of(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return check


def _check_database(value: object) -> str:
    url = _check_text(value)
    if parse_socket_path(url) is not None:
        # Keys stay with the service: nothing that is behind a socket is ever asked about a secret.
        raise ValueError(f"{url.partition(':')[0]}: holds invites only, no keys; it can be the setting invites")
    return _check_store(url, "sqlite:///, postgresql:// and memory:")


def _check_invites(value: object) -> str:
    url = _check_text(value)
    if parse_socket_path(url) is not None:
        return url
    return _check_store(url, "sqlite:///, postgresql://, memory:, agent: and prosody:")


def _check_store(url: str, known: str) -> str:
    if url != "memory:" and not url.startswith("postgresql://") and parse_sqlite_path(url) is None:
        # Only the scheme is shown: the rest may hold a password.
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:", url)
        raise ValueError(f"there is no store {scheme[0] if scheme else 'without a scheme'!r}; known are {known}")
    return url


def _check_listen(value: object) -> str:
    text = _check_text(value)
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text
    address, colon, port = text.rpartition(":")
    try:
        host = ipaddress.ip_address(address.removeprefix("[").removesuffix("]")) if colon else None
    except ValueError:
        host = None
    known = address == "localhost" or (host is not None and (host.version == 4) == (not address.startswith("[")))
    if not known or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError("must be ADDRESS:PORT, such as 127.0.0.1:5280 or [::1]:5280, or unix:PATH")
    return text


def _check_path(value: object) -> str:
    text = _check_text(value)
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text, re.ASCII) or "/." in text:
        raise ValueError("must begin with a slash, end without one, and hold letters, digits, - . _ ~ only")
    return text


def _check_origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('must be a list, such as ["*"] or ["https://app.example"]')
    origins = tuple(_check_text(origin) for origin in value)
    if origins == ("*",):
        return origins
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", origin, re.ASCII):
            raise ValueError(f"{origin!r} is not an origin, such as https://app.example")
    return origins


def _check_landing_page(value: object) -> str:
    text = _check_text(value)
    check_landing_template(text)
    return text


def _check_site_name(value: object) -> str:
    text = _check_text(value)
    if not 1 <= len(text) <= 100:
        raise ValueError("must have from 1 to 100 characters")
    return text


def _check_label(value: object) -> str:
    text = _check_text(value)
    if not 1 <= len(text) <= 60:
        raise ValueError("must have from 1 to 60 characters")
    return text


def _check_contact(value: object) -> str:
    text = _check_text(value)
    if not _CONTACT.fullmatch(text):
        raise ValueError('must be a URI, such as "mailto:admin@example.com", "https://…" or "xmpp:…"')
    return text


def _check_button_link(value: object) -> str:
    text = _check_text(value)
    known = _LINK.fullmatch(text)
    if known is None or known[1].lower() in _HARMFUL or len(text) > MAX_LINK:
        raise ValueError('must be a link in ASCII without spaces, such as "https://example.com/join?invite={token}"')
    rest = text.replace("{token}", "")
    if rest == text or "{" in rest or "}" in rest:
        raise ValueError("must hold {token}, where the invite's token goes, and no other placeholder")
    return text


def _check_color(value: object) -> str:
    text = _check_text(value)
    if not _COLOR.fullmatch(text):
        raise ValueError('must be a colour such as "#1f5fbf"')
    return text


def _check_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _check_file(value: object) -> Path:
    text = _check_text(value)
    if not text:
        raise ValueError("must be a path")
    return Path(text)


def _check_language(value: object) -> str:
    text = _check_text(value)
    if not re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", text, re.ASCII):
        raise ValueError('must be the tag of a language, such as "en" or "de"')
    return text


def _check_duration(field: str) -> Callable[[object], timedelta]:
    """Return the check of a duration that is called ``field``."""
    return lambda value: parse_duration(_check_text(value), field=field)


CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "database": _check_database,
    "invites": _check_invites,
    "listen": _check_listen,
    "metrics_listen": _check_listen,
    "path": _check_path,
    "landing_path": _check_path,
    "trusted_proxies": _check_whole(0, MAX_PROXIES),
    "cors_origins": _check_origins,
    "workers": _check_whole(1, MAX_WORKERS),
    "threads": _check_whole(1, MAX_THREADS),
    "log_format": _check_one_of("text", "json"),
    "log_command_file": _check_file,
    "log_level": _check_one_of("debug", "info", "warning", "error"),
    "purge_after": _check_duration("purge_after"),
}
"""The check of each field of the settings, by its name there."""

HOST_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "landing_page": _check_landing_page,
    "site_name": _check_site_name,
    "invite_expiry": _check_duration("invite_expiry"),
}
"""The check of each key in the table of a host."""

PAGE_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "language": _check_language,
    "templates": _check_file,
    "apps": _check_file,
}
"""The check of each key of ``[page]``."""

HOST_PAGE_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "contact": _check_contact,
    "logo": _check_file,
    "color": _check_color,
    "button_label": _check_label,
    "button_link": _check_button_link,
    "xmpp": _check_bool,
}
"""The check of each key in the table of a host that is about its page."""
