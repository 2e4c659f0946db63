"""Settings: from a TOML file, the environment and arguments, in this order of growing weight."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from invites_core.errors import InvalidHost, InvalidRequest
from invites_core.hosts import Hosts, HostSettings, normalize_host
from invites_core.stores import find_max_rows, parse_socket_path, parse_sqlite_path
from invites_wsgi.config_values import (
    CHECKS,
    HOST_CHECKS,
    HOST_PAGE_CHECKS,
    PAGE_CHECKS,
    SettingsError,
    check_table,
)
from invites_wsgi.page.settings import HostPage, PageSettings

__all__ = ["Settings", "SettingsError", "default_database", "has_password", "load_settings"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service and the command are set to.

    Attributes:
        database: URL of the store of the keys, and of the invites unless `invites` says otherwise.
        invites: URL of the store of the invites, or None for the same store.
        listen: ``ADDRESS:PORT`` or ``unix:PATH``.
        metrics_listen: Where metrics are to be had, as `listen`; None: nowhere, and none are kept.
        path: Where the API is.
        landing_path: Where the invite page is.
        trusted_proxies: How many proxies in front of the service add to ``X-Forwarded-For``.
        cors_origins: The origins whose pages may call the API; ``*`` alone for all.
        workers: Processes of the server.
        threads: Threads of each process where they answer: with invites in a Prosody or behind an agent.
        log_format: ``text`` or ``json``.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_command_file: The file to which the command appends its events; None: it keeps none.
        purge_after: The age at which the running service deletes invites that are over; None: it deletes none.
        hosts: The hosts that are served.
        page: What the invite page is set to.
        file: The settings file that was read, or None.
    """

    database: str = field(repr=False)
    invites: str | None = field(default=None, repr=False)
    listen: str = "127.0.0.1:5280"
    metrics_listen: str | None = None
    path: str = "/invites_api"
    landing_path: str = "/invite"
    trusted_proxies: int = 0
    cors_origins: tuple[str, ...] = ("*",)
    workers: int = 2
    threads: int = 8
    log_format: str = "text"
    log_level: str = "info"
    log_command_file: Path | None = None
    purge_after: timedelta | None = None
    hosts: Hosts = field(default_factory=Hosts)
    page: PageSettings = field(default_factory=PageSettings)
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
            check = CHECKS.get(key)
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
    fields["page"] = fields["page"].relative_to(folder)
    if "log_command_file" in fields:
        fields["log_command_file"] = folder / fields["log_command_file"]
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
    page: dict[str, Any] = {}
    for key, value in content.items():
        if key == "hosts":
            fields["hosts"], page["hosts"] = _read_hosts(_check(check_table, value, "hosts"))
        elif key == "page":
            page |= _read_table(_check(check_table, value, "page"), PAGE_CHECKS, within="page.")
        elif key in _SECTIONS:
            names = _SECTIONS[key]
            checks = {name: CHECKS[field] for name, field in names.items()}
            read = _read_table(_check(check_table, value, key), checks, within=f"{key}.")
            fields |= {names[name]: inner for name, inner in read.items()}
        elif key in _TOP:
            fields[key] = _check(CHECKS[key], value, key)
        else:
            raise _unknown(key, [*_TOP, "hosts", "page", *_SECTIONS])
    return {**fields, "page": PageSettings(**page)}


def _read_table(table: Mapping[str, Any], checks: Mapping[str, Callable[[Any], Any]], *, within: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in checks:
            raise _unknown(key, list(checks), within=within)
        values[key] = _check(checks[key], value, f"{within}{key}")
    return values


def _read_hosts(tables: Mapping[str, Any]) -> tuple[Hosts, Mapping[str, HostPage]]:
    hosts: dict[str, HostSettings] = {}
    pages: dict[str, HostPage] = {}
    checks = {**HOST_CHECKS, **HOST_PAGE_CHECKS}
    for name, given in tables.items():
        where = f'hosts."{name}"'
        table = _check(check_table, given, where)
        if inner := next((key for key, value in table.items() if key not in checks and isinstance(value, dict)), None):
            raise SettingsError(f'{where}.{inner}: unknown key; a host name needs quotes, as in [hosts."example.com"]')
        values = _read_table(table, checks, within=f"{where}.")
        hosts[name] = HostSettings(**{key: value for key, value in values.items() if key in HOST_CHECKS})
        _check(lambda single: Hosts(dict(single)), [(name, hosts[name])], where)
        page = HostPage(**{key: value for key, value in values.items() if key in HOST_PAGE_CHECKS})
        _check_buttons(page, where)
        pages[normalize_host(name)] = page
    return _check(Hosts, hosts, "hosts"), pages


def _check_buttons(page: HostPage, where: str) -> None:
    if (page.button_label is None) != (page.button_link is None):
        raise SettingsError(f"{where}: button_label and button_link belong together")
    if not page.xmpp and page.button_link is None:
        raise SettingsError(f"{where}.xmpp: can be false only where there is a button_link")


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
    if settings.metrics_listen is not None and _get_port(settings.metrics_listen) == _get_port(settings.listen):
        raise SettingsError("http.metrics_listen: must have a port of its own, not that of http.listen")


def _get_port(listen: str) -> str:
    """Return the port of an address, or a socket whole: at the same port of another address is not enough apart."""
    return listen if listen.startswith("unix:") else listen.rpartition(":")[2]


_TOP: Final = ("database", "invites", "purge_after")
_SECTIONS: Final[dict[str, dict[str, str]]] = {
    "http": {
        key: key
        for key in (
            "listen",
            "metrics_listen",
            "path",
            "landing_path",
            "trusted_proxies",
            "cors_origins",
            "workers",
            "threads",
        )
    },
    "log": {"format": "log_format", "level": "log_level", "command_file": "log_command_file"},
}
