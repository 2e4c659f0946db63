"""Settings: from a TOML file, the environment and arguments, in this order of growing weight."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from invites_core.durations import parse_duration
from invites_core.errors import InvalidHost, InvalidRequest
from invites_core.hosts import Hosts, HostSettings
from invites_core.invites import check_landing_template
from invites_core.stores import find_max_rows, parse_socket_path, parse_sqlite_path

__all__ = ["Settings", "SettingsError", "default_database", "has_password", "load_settings"]

T = TypeVar("T")

MAX_PROXIES: Final = 16
MAX_WORKERS: Final = 256
MAX_THREADS: Final = 256


class SettingsError(Exception):
    """A mistake in the settings, in one line that names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service and the command are set to.

    Attributes:
        database: URL of the store of the keys, and of the invites unless `invites` says otherwise.
        invites: URL of the store of the invites, or None for the same store.
        listen: ``ADDRESS:PORT`` or ``unix:PATH``.
        path: Where the API is.
        landing_path: Where the invite page is.
        trusted_proxies: How many proxies in front of the service add to ``X-Forwarded-For``.
        cors_origins: The origins whose pages may call the API; ``*`` alone for all.
        workers: Processes of the server.
        threads: Threads of each process.
        log_format: ``text`` or ``json``.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        purge_after: The age at which the running service deletes invites that are over; None: it deletes none.
        hosts: The hosts that are served.
        file: The settings file that was read, or None.
    """

    database: str = field(repr=False)
    invites: str | None = field(default=None, repr=False)
    listen: str = "127.0.0.1:5280"
    path: str = "/invites_api"
    landing_path: str = "/invite"
    trusted_proxies: int = 0
    cors_origins: tuple[str, ...] = ("*",)
    workers: int = 2
    threads: int = 8
    log_format: str = "text"
    log_level: str = "info"
    purge_after: timedelta | None = None
    hosts: Hosts = field(default_factory=Hosts)
    file: Path | None = None


def default_database(environ: Mapping[str, str]) -> str:
    """Return the URL of the database in the user's data directory (XDG Base Directory Specification)."""
    data = environ.get("XDG_DATA_HOME", "")
    if not data.startswith("/"):
        data = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "share")
    return f"sqlite:///{data}/invites-api/invites.db"


def load_settings(
    *, file: str | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """Read the settings.

    Args:
        file: The settings file; None: the one that ``INVITES_CONFIG`` names, or none.
        environ: The environment; None: this process's.
        overrides: Fields of `Settings` given as arguments, each of the field's type; None values are passed over.

    Raises:
        SettingsError: A file that cannot be read, an unknown key, a wrong type or an impossible value.
    """
    environ = os.environ if environ is None else environ
    name = file or environ.get("INVITES_CONFIG") or None
    settings = Settings(database=default_database(environ))
    if name is not None:
        settings = _read_file(settings, Path(name))
    given: dict[str, Any] = {"database": environ.get("INVITES_DATABASE") or None}
    given.update((key, value) for key, value in (overrides or {}).items() if value is not None)
    for key, value in given.items():
        if value is not None:
            check = _CHECKS.get(key)
            checked = value if check is None else _check(check, value, key)
            settings = replace(settings, **{key: checked})
    _check_together(settings)
    return settings


def has_password(url: str) -> bool:
    """Tell whether a database URL holds a password, which must not be an argument that every user can list."""
    if url.startswith(("sqlite:", "memory:", "agent:", "prosody:")):
        return False
    # Not by the characters that end a name in other URLs: PostgreSQL's library takes them as part of a password. Its
    # parameters may be percent-encoded, in their names too.
    user, at, _ = url.partition("://")[2].rpartition("@")
    return (bool(at) and ":" in user) or "password=" in unquote(url).lower()


def _read_file(settings: Settings, path: Path) -> Settings:
    try:
        with path.open("rb") as opened:
            content = tomllib.load(opened)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {str(error).splitlines()[0]}") from error
    try:
        fields = _read_sections(content)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error.__cause__
    folder = Path(os.path.abspath(path)).parent
    for key in ("database", "invites"):
        if fields.get(key) is not None:
            fields[key] = _make_absolute(fields[key], folder)
    return replace(settings, file=path, **fields)


def _make_absolute(url: str, folder: Path) -> str:
    """A relative path in a settings file is relative to the file."""
    path = parse_sqlite_path(url)
    if path is not None:
        return f"sqlite:///{folder / path}"
    path = parse_socket_path(url)
    if path is None:
        return url
    max_rows = find_max_rows(url)
    return f"{url.partition(':')[0]}://{folder / path}{'' if max_rows is None else f'?max_rows={max_rows}'}"


def _read_sections(content: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in content.items():
        if key == "hosts":
            fields["hosts"] = _read_hosts(_check(_table, value, "hosts"))
        elif key in _SECTIONS:
            names = _SECTIONS[key]
            for name, inner in _check(_table, value, key).items():
                if name not in names:
                    raise _unknown(name, list(names), within=f"{key}.")
                fields[names[name]] = _check(_CHECKS[names[name]], inner, f"{key}.{name}")
        elif key in _TOP:
            fields[key] = _check(_CHECKS[key], value, key)
        else:
            raise _unknown(key, [*_TOP, "hosts", *_SECTIONS])
    return fields


def _read_hosts(tables: Mapping[str, Any]) -> Hosts:
    hosts: dict[str, HostSettings] = {}
    for name, table in tables.items():
        where = f'hosts."{name}"'
        values: dict[str, Any] = {}
        for key, value in _check(_table, table, where).items():
            if key not in _HOST_CHECKS and isinstance(value, dict):
                raise SettingsError(
                    f'{where}.{key}: unknown key; a host name needs quotes, as in [hosts."example.com"]'
                )
            if key not in _HOST_CHECKS:
                raise _unknown(key, list(_HOST_CHECKS), within=f"{where}.")
            values[key] = _check(_HOST_CHECKS[key], value, f"{where}.{key}")
        hosts[name] = HostSettings(**values)
        _check(lambda single: Hosts(dict(single)), [(name, hosts[name])], where)
    return _check(Hosts, hosts, "hosts")


def _unknown(key: str, known: list[str], *, within: str = "") -> SettingsError:
    near = difflib.get_close_matches(key, known, n=1)
    return SettingsError(f"{within}{key}: unknown key" + (f"; did you mean {within}{near[0]}?" if near else ""))


def _check(check: Callable[[Any], T], value: object, name: str) -> T:
    """Run a check and name in its error what was checked."""
    try:
        return check(value)
    except InvalidRequest as error:
        # The error's own text names the field as the library calls it.
        raise SettingsError(f"{name}: {str(error).removeprefix(f'{error.field}: ')}") from error
    except InvalidHost as error:
        reason = "not a valid host" if str(error) == str(InvalidHost()) else str(error)
        raise SettingsError(f"{name}: {reason}") from error
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error


def _check_together(settings: Settings) -> None:
    paths = [settings.path, settings.landing_path, "/healthz"]
    if len(set(paths)) < len(paths) or settings.landing_path.startswith(f"{settings.path}/"):
        raise SettingsError("http.path, http.landing_path and /healthz must be different places")


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text in quotes")
    if any(char < " " or char == "\x7f" for char in value):
        raise ValueError("must hold no control characters")
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return check


def _one_of(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return check


def _database(value: object) -> str:
    url = _text(value)
    if parse_socket_path(url) is not None:
        # Keys stay with the service: nothing that is behind a socket is ever asked about a secret.
        raise ValueError(f"{url.partition(':')[0]}: holds invites only, no keys; it can be the setting invites")
    return _known_store(url, "sqlite:///, postgresql:// and memory:")


def _invites(value: object) -> str:
    url = _text(value)
    if parse_socket_path(url) is not None:
        return url
    return _known_store(url, "sqlite:///, postgresql://, memory:, agent: and prosody:")


def _known_store(url: str, known: str) -> str:
    if url != "memory:" and not url.startswith("postgresql://") and parse_sqlite_path(url) is None:
        # Only the scheme is shown: the rest may hold a password.
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:", url)
        raise ValueError(f"there is no store {scheme[0] if scheme else 'without a scheme'!r}; known are {known}")
    return url


def _listen(value: object) -> str:
    text = _text(value)
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


def _path(value: object) -> str:
    text = _text(value)
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text, re.ASCII) or "/." in text:
        raise ValueError("must begin with a slash, end without one, and hold letters, digits, - . _ ~ only")
    return text


def _origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('must be a list, such as ["*"] or ["https://app.example"]')
    origins = tuple(_text(origin) for origin in value)
    if origins == ("*",):
        return origins
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", origin, re.ASCII):
            raise ValueError(f"{origin!r} is not an origin, such as https://app.example")
    return origins


def _landing_page(value: object) -> str:
    text = _text(value)
    check_landing_template(text)
    return text


def _site_name(value: object) -> str:
    text = _text(value)
    if not 1 <= len(text) <= 100:
        raise ValueError("must have from 1 to 100 characters")
    return text


_TOP: Final = ("database", "invites", "purge_after")
_SECTIONS: Final[dict[str, dict[str, str]]] = {
    "http": {
        key: key for key in ("listen", "path", "landing_path", "trusted_proxies", "cors_origins", "workers", "threads")
    },
    "log": {"format": "log_format", "level": "log_level"},
}
_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "database": _database,
    "invites": _invites,
    "listen": _listen,
    "path": _path,
    "landing_path": _path,
    "trusted_proxies": _whole(0, MAX_PROXIES),
    "cors_origins": _origins,
    "workers": _whole(1, MAX_WORKERS),
    "threads": _whole(1, MAX_THREADS),
    "log_format": _one_of("text", "json"),
    "log_level": _one_of("debug", "info", "warning", "error"),
    "purge_after": lambda value: parse_duration(_text(value), field="purge_after"),
}
_HOST_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "landing_page": _landing_page,
    "site_name": _site_name,
    "invite_expiry": lambda value: parse_duration(_text(value), field="invite_expiry"),
}
