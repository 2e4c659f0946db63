"""What the invite page is set to, for all hosts and for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from invites_core.invites import Invite

__all__ = ["DEFAULT_LANGUAGE", "HostPage", "PageSettings"]

DEFAULT_LANGUAGE: Final = "en"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPage:
    """What the page of one host's invites is set to.

    Attributes:
        contact: The URI at which a visitor reaches whoever runs the site; None: the page names none.
        logo: The file of an image, shown above the heading; None: no image.
        color: The colour of buttons, as ``#rrggbb``; None: blue.
        button_label: The text of a button of the site's own; None: there is none.
        button_link: Where that button leads, with ``{token}`` where the token goes.
        xmpp: Whether the page has the ``xmpp:`` URI, and the apps that take it.
    """

    contact: str | None = None
    logo: Path | None = None
    color: str | None = None
    button_label: str | None = None
    button_link: str | None = None
    xmpp: bool = True

    def format_button_link(self, token: str) -> str:
        """Return where the site's own button leads for an invite; "" where there is none."""
        return (self.button_link or "").replace("{token}", token)

    def get_link(self, invite: Invite) -> str:
        """Return what opens an invite of this host: its ``xmpp:`` URI, or the link of the site's own button."""
        return invite.uri if self.xmpp else self.format_button_link(invite.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSettings:
    """What the invite page is set to.

    Attributes:
        language: What a visitor reads whose own languages the page does not have.
        templates: A folder with templates that come before ours; None: none.
        apps: A file with the apps to show instead of ours; None: ours.
        hosts: Normalised host name to what its page is set to; a host that is not in it has the defaults.
    """

    language: str = DEFAULT_LANGUAGE
    templates: Path | None = None
    apps: Path | None = None
    hosts: Mapping[str, HostPage] = field(default_factory=dict)

    def relative_to(self, folder: Path) -> PageSettings:
        """Return the same with every relative path made relative to a folder."""
        hosts = {
            host: page if page.logo is None else replace(page, logo=folder / page.logo)
            for host, page in self.hosts.items()
        }
        templates = None if self.templates is None else folder / self.templates
        return replace(self, templates=templates, apps=None if self.apps is None else folder / self.apps, hosts=hosts)

    def get_host(self, host: str | None) -> HostPage:
        """Return what a host's page is set to.

        Args:
            host: The host of the invite; None where there is no invite: the one host, if the settings list only one.
        """
        if host is None:
            host = next(iter(self.hosts)) if len(self.hosts) == 1 else None
        return self.hosts.get(host or "", HostPage())
