"""URLs of PostgreSQL databases: what is libpq's, what is ours, and how one is shown to people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from invites_core.errors import InvalidRequest

__all__ = ["DEFAULT_CONNECTIONS", "PostgresqlUrl", "parse_postgresql_url"]

DEFAULT_CONNECTIONS: Final = 10
"""How many connections a process opens at most, where the URL does not say."""

MOST_CONNECTIONS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresqlUrl:
    """A URL that was read.

    Attributes:
        conninfo: The parameters for libpq, which may hold a password; what is missing libpq takes from the environment
            (``PGHOST``, ``PGPASSWORD``, ``PGSSLMODE`` …) and from ``~/.pgpass``.
        max_connections: How many connections a process opens at most.
        location: Where the database is, without password and parameters.
    """

    conninfo: dict[str, str] = field(repr=False)
    max_connections: int
    location: str

    @property
    def hosts(self) -> int:
        """How many servers it names, which are tried one after the other."""
        return self.conninfo.get("host", "").count(",") + 1


def parse_postgresql_url(url: str) -> PostgresqlUrl:
    """Read ``postgresql://user@host:port/database?parameter=value``.

    All parameters of libpq are taken (PostgreSQL's documentation, 34.1), and ``max_connections``.

    Raises:
        InvalidRequest: It cannot be read. Nothing of the URL is repeated: it may hold a password.
    """
    base, _, query = url.partition("?")
    wanted = DEFAULT_CONNECTIONS
    kept = []
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        if name != "max_connections":
            kept.append(part)
            continue
        if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MOST_CONNECTIONS):
            raise InvalidRequest("database", f"max_connections must be a number from 1 to {MOST_CONNECTIONS}")
        wanted = int(value)
    try:
        conninfo = {key: str(value) for key, value in conninfo_to_dict("?".join([base, "&".join(kept)])).items()}
    except (psycopg.Error, UnicodeError, ValueError) as error:
        # Not the driver's own words, which quote what they could not read.
        raise InvalidRequest("database", "is not a URL that PostgreSQL's client library can read") from error
    # A password with a character of the URL's own in it is read as something else, which must not be shown.
    if "@" in conninfo.get("host", "") or any(char in conninfo.get("dbname", "") for char in "@/:"):
        raise InvalidRequest("database", "has a character that must be percent-encoded in a URL, such as %40 for @")
    if any(port and not (port.isascii() and port.isdigit()) for port in conninfo.get("port", "").split(",")):
        raise InvalidRequest("database", "the port is no number, or the password must be percent-encoded")
    return PostgresqlUrl(conninfo=conninfo, max_connections=wanted, location=_describe(conninfo))


def _describe(conninfo: dict[str, str]) -> str:
    host = conninfo.get("host") or conninfo.get("hostaddr") or ""
    ports = conninfo.get("port", "")
    if ports and "," not in ports and "," not in host:
        host = f"{f'[{host}]' if ':' in host else host}:{ports}"
    return f"postgresql://{host}/{conninfo.get('dbname', '')}"
