"""The page as HTML: templates, style and script put together once, and filled for each visitor."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import jinja2
from markupsafe import Markup

from invites_core import Hosts, Invite
from invites_wsgi.config_values import SettingsError
from invites_wsgi.page.apps import App, load_apps
from invites_wsgi.page.languages import Language, load_languages
from invites_wsgi.page.looks import find_text_color, load_logo
from invites_wsgi.page.platforms import PHONES, PLATFORMS
from invites_wsgi.page.qr import draw_qr
from invites_wsgi.page.settings import HostPage, PageSettings
from invites_wsgi.page.templates import Templates, naming_mistakes

__all__ = ["PageView"]

_STATES: Final = ("pending", "used", "expired", "revoked")
_SAMPLES: Final = tuple(
    Invite(
        token="AAAAAAAAAAAAAAAAAAAAAAAA",  # noqa: S106 (a sample's, which opens nothing)
        host="example.com",
        kind=kind,
        username=username,
        registration=registration,
        created_at=datetime.fromtimestamp(0, UTC),
        expires_at=None if username else datetime.fromtimestamp(0, UTC),
        source="sample",
    )
    for kind, username, registration in (
        ("register", None, True),
        ("register", "user", True),
        ("roster", "user", True),
        ("roster", "user", False),
        ("reset", "u" * 1023, False),
    )
)
"""One invite for each page that a template may make, with what is there and what is not."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is made once of a host's settings."""

    page: HostPage
    style: Markup
    policy: str
    logo: str | None


class PageView:
    """Makes the page; safe to share among threads."""

    def __init__(self, settings: PageSettings, hosts: Hosts) -> None:
        """Read all that the page is made of.

        Args:
            settings: What the page is set to.
            hosts: The hosts that are served, for the names of their sites.

        Raises:
            SettingsError: A template, the file of apps, a logo or the language is not as it should be.
        """
        self._settings = settings
        self._hosts = hosts
        apps = load_apps(settings.apps)
        self.languages: Mapping[str, Language] = {language.code.lower(): language for language in load_languages()}
        if settings.language.lower() not in self.languages:
            known = ", ".join(language.code for language in self.languages.values())
            raise SettingsError(f"page.language: must be one of {known}")
        templates = {code: Templates(settings.templates, language) for code, language in self.languages.items()}
        self._pages = {code: of_one.get("invite.html") for code, of_one in templates.items()}
        self._app_lists = {
            (code, platform): _list_apps(of_one.get("apps.html"), apps, platform)
            for code, of_one in templates.items()
            for platform in (None, *PLATFORMS)
        }
        plain = templates[settings.language.lower()]
        self._script = plain.read("invite.js")
        self._style = plain.read("invite.css") + plain.read("extra.css", default="")
        # An invite that there is not has no host: where all are of one host, it looks like those.
        self._unknown_look = self._make_look(settings.get_host(None))
        self._plain_look = self._make_look(HostPage())
        self._looks = {host: self._make_look(page) for host, page in settings.hosts.items()}
        if settings.templates is not None:
            self._try_templates()

    def render(
        self, invite: Invite | None, state: str, *, language: Language, platform: str | None
    ) -> tuple[str, Mapping[str, str]]:
        """Return the page and the headers that belong to it.

        Args:
            invite: The invite; None where there is none of this token.
            state: Its state, or ``unknown``.
            language: The language of the page.
            platform: The visitor's platform, or None.
        """
        look = self._unknown_look if invite is None else self._looks.get(invite.host, self._plain_look)
        facts: dict[str, Any] = {
            "state": state,
            "lang": language.code,
            "dir": language.direction,
            "site_name": None,
            "contact": look.page.contact,
            "logo": look.logo,
            "style": look.style,
            "script": self._script,
        }
        if invite is not None:
            facts["site_name"] = self._hosts.get(invite.host).site_name or invite.host
        if invite is not None and state == "pending":
            facts |= _describe(invite, look.page, language)
            facts |= self._app_lists[language.code.lower(), platform]
        headers = {"Content-Security-Policy": look.policy, "Content-Language": language.code}
        return self._pages[language.code.lower()].render(facts), headers

    def _try_templates(self) -> None:
        """Make every page once, so that a mistake in a template of the site's shows before the first visitor.

        Raises:
            SettingsError: There is one.
        """
        hosts = self._settings.hosts or ["example.com"]
        samples = [replace(sample, host=host) for sample in _SAMPLES for host in hosts]
        pages = [(None, "unknown"), *((sample, state) for sample in samples for state in _STATES)]
        with naming_mistakes():
            for invite, state in pages:
                for language in self.languages.values():
                    for platform in (None, PLATFORMS[0]):
                        self.render(invite, state, language=language, platform=platform)

    def _make_look(self, page: HostPage) -> _Look:
        style = self._style
        if page.color is not None:
            # With a line around it, the button is seen also where its colour is that of the page.
            style += (
                f":root{{--accent:{page.color};--on-accent:{find_text_color(page.color)}}}"
                ".button{border-color:var(--line)}"
            )
        # Only a site's own templates show images of its own.
        images = "data:" if self._settings.templates is None else "'self' data:"
        policy = (
            f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(self._script)}; img-src {images};"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        logo = None if page.logo is None else load_logo(page.logo)
        return _Look(page, Markup(style), policy, logo)  # noqa: S704 (no more than what is in a style of the site's)


def _describe(invite: Invite, page: HostPage, language: Language) -> dict[str, Any]:
    uri = invite.uri if page.xmpp else None
    button = None
    if page.button_label is not None:
        button = {"label": page.button_label, "link": page.format_button_link(invite.token)}
    link = page.get_link(invite)
    return {
        "kind": invite.kind,
        "host": invite.host,
        "jid": invite.jid,
        "username": invite.username,
        "registration": invite.registration,
        "uri": uri,
        "link": link,
        "button": button,
        "qr": draw_qr(link),
        "expires_at": None if invite.expires_at is None else _format_times(invite.expires_at, language),
    }


def _hash(text: str) -> str:
    """Return the source of a policy that admits exactly this text (CSP Level 3, section 6.7.2.3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _format_times(time: datetime, language: Language) -> dict[str, str]:
    return {"iso": time.strftime("%Y-%m-%dT%H:%M:%SZ"), "text": language.format_time(time)}


def _list_apps(template: jinja2.Template, apps: Sequence[App], platform: str | None) -> dict[str, Any]:
    """Return what the page says of apps to a visitor on a platform, or on one that is not known."""
    own, others = _sort_apps(apps, platform)
    with naming_mistakes():
        lists = [template.render(apps=cards) if cards else "" for cards in (own, others)]
    # Whoever is on a phone already is not sent to one.
    can_open = platform in {None, *PHONES} or any(app.takes_invites and platform in app.downloads for app in apps)
    return {
        "platform": platform,
        # They were escaped when they were made.
        "app_list": Markup(lists[0]),  # noqa: S704
        "other_app_list": Markup(lists[1]),  # noqa: S704
        "can_open": can_open,
    }


def _sort_apps(apps: Sequence[App], platform: str | None) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the apps for a platform and those for others, each with the places to get it by platform.

    Those that open the invite come first. Where the platform is not known, or has no app, all are in the first part.
    """
    apps = sorted(apps, key=lambda app: not app.takes_invites)
    own = [_card(app, [platform]) for app in apps if platform in app.downloads]
    if platform is None or not own:
        return [_card(app, PLATFORMS) for app in apps], []
    elsewhere = [name for name in PLATFORMS if name != platform]
    return own, [_card(app, elsewhere) for app in apps if set(app.downloads) - {platform}]


def _card(app: App, platforms: Sequence[str | None]) -> dict[str, Any]:
    places = {name: app.downloads[name] for name in platforms if name is not None and name in app.downloads}
    return {"name": app.name, "takes_invites": app.takes_invites, "places": places}
