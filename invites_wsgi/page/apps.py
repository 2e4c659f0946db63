"""The apps that the page recommends, read from a data file that an operator can replace."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from invites_wsgi.config_values import SettingsError
from invites_wsgi.page.platforms import PLATFORMS

__all__ = ["App", "load_apps"]

_MOST_APPS: Final = 50
_LINK: Final = re.compile(r"https?://[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class App:
    """An app, as its card on the page shows it.

    Attributes:
        name: What it is called.
        takes_invites: Whether it opens an invite's ``xmpp:`` URI and registers with it (XEP-0401).
        downloads: Platform to where to get it there: the name of a store or site, and its link.
    """

    name: str
    takes_invites: bool
    downloads: Mapping[str, Mapping[str, str]]


def load_apps(path: Path | None) -> Sequence[App]:
    """Read the apps, in the order in which they are shown.

    Args:
        path: The file; None: the one of this package.

    Raises:
        SettingsError: It cannot be read, or does not hold apps; the message names the file and the place in it.
    """
    where = path or files("invites_wsgi").joinpath("apps.toml")
    try:
        content = tomllib.loads(where.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {where}: {(error.strerror or 'error').lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where}: not valid TOML: {str(error).splitlines()[0]}") from error
    try:
        if not 1 <= len(content) <= _MOST_APPS:
            raise ValueError(f"must hold from 1 to {_MOST_APPS} apps, and holds {len(content)}")
        return tuple(_read_app(name, table) for name, table in content.items())
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error


def _read_app(name: str, table: object) -> App:
    if not name.strip():
        raise ValueError("an app has no name")
    if not isinstance(table, dict):
        raise ValueError(f'{name}: must be a table of an app, such as ["{name}"]')
    takes_invites, downloads = False, {}
    for key, value in table.items():
        if key == "takes_invites":
            if not isinstance(value, bool):
                raise ValueError(f'"{name}".takes_invites: must be true or false')
            takes_invites = value
        elif key in PLATFORMS:
            downloads[key] = _read_links(f'"{name}".{key}', value)
        else:
            raise ValueError(f'"{name}".{key}: unknown key; known are takes_invites, {", ".join(PLATFORMS)}')
    if not downloads:
        raise ValueError(f'"{name}": names no platform; known are {", ".join(PLATFORMS)}')
    return App(name, takes_invites, downloads)


def _read_links(where: str, links: Any) -> Mapping[str, str]:
    if not isinstance(links, dict) or not links:
        raise ValueError(f'{where}: must be a table, such as {{ "F-Droid" = "https://f-droid.org/" }}')
    for store, link in links.items():
        if not store.strip():
            raise ValueError(f"{where}: a store has no name")
        if not isinstance(link, str) or not _LINK.fullmatch(link):
            raise ValueError(f'{where}."{store}": must be an http: or https: URL in ASCII without spaces')
    return links
