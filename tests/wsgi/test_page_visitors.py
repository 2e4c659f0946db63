"""What the invite page makes of who looks at it: their platform, their language, or a program."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from babel.messages import Catalog
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from invites_wsgi.page.languages import Language, choose_language, load_languages
from invites_wsgi.page.settings import PageSettings
from tests import translations
from tests.helpers import make_invite
from tests.wsgi.conftest import MakeService
from tests.wsgi.pages import Page
from tests.wsgi.support import Answer, Service, hosts_of

AGENTS = {
    "android": "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/120.0 Mobile Safari/537.36",
    "ios": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Version/17.0 Mobile Safari",
    "ipad": "Mozilla/5.0 (iPad; CPU OS 12_5 like Mac OS X) AppleWebKit/605.1.15 Version/12.1 Mobile/15E148 Safari",
    "windows": "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:120.0) Gecko/20100101 Firefox/120.0",
    "macos": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/17.0 Safari/605.1.15",
    "linux": "Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0",
    "chromebook": "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 Chrome/120.0 Safari/537.36",
    "bsd": "Mozilla/5.0 (X11; FreeBSD amd64; rv:120.0) Gecko/20100101 Firefox/120.0",
}


def look(service: Service, headers: dict[str, str], **fields: Any) -> Answer:
    """Look at the page of a new invite."""
    invite = make_invite(**fields)
    service.store.add_invites([invite])
    return service.ask(f"/invite?{invite.token}", headers=headers)


def split_apps(page: Page) -> tuple[str, str]:
    """Return the apps that are shown, and those that are one click away."""
    folded = "".join(page.texts.get("details", []))
    return page.texts["ol"][0].replace(folded, ""), folded


@pytest.mark.parametrize(
    ("headers", "shown", "folded"),
    [
        pytest.param({"User-Agent": AGENTS["android"]}, "Android: F-Droid", "iPhone and iPad:", id="android"),
        pytest.param({"User-Agent": AGENTS["ios"]}, "iPhone and iPad: App Store", "Android:", id="ios"),
        pytest.param({"User-Agent": AGENTS["ipad"]}, "iPhone and iPad: App Store", "Android:", id="ipad"),
        pytest.param({"User-Agent": AGENTS["windows"]}, "Windows: gajim.org", "Android:", id="windows"),
        pytest.param({"User-Agent": AGENTS["macos"]}, "Mac: App Store", "Android:", id="macos"),
        pytest.param({"User-Agent": AGENTS["linux"]}, "Linux: gajim.org", "Android:", id="linux"),
        pytest.param({"User-Agent": AGENTS["bsd"]}, "Linux: gajim.org", "Android:", id="bsd"),
        pytest.param(
            {"User-Agent": AGENTS["linux"], "Sec-CH-UA-Platform": '"Android"'},
            "Android: F-Droid",
            "Linux:",
            id="hint-before-name",
        ),
        pytest.param({"User-Agent": AGENTS["chromebook"]}, "Android: F-Droid", "Linux:", id="chromebook"),
        pytest.param(
            {"User-Agent": AGENTS["chromebook"], "Sec-CH-UA-Platform": '"Chrome OS"'},
            "Android: F-Droid",
            "Linux:",
            id="chromebook-hint",
        ),
        pytest.param({"Sec-CH-UA-Platform": '"macOS"'}, "Mac: App Store", "Windows:", id="hint-alone"),
    ],
)
def test_the_apps_for_the_visitors_platform_come_first(
    service: Service, headers: dict[str, str], shown: str, folded: str
) -> None:
    """Who opens the link on a phone sees apps for that phone; all others are one click away, without JavaScript."""
    first, rest = split_apps(Page(look(service, headers).text))
    assert shown in " ".join(first.split())
    assert folded not in first
    assert folded in rest
    assert shown.partition(":")[0] + ":" not in rest


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"User-Agent": "curl/8.0"},
        {"User-Agent": AGENTS["linux"], "Sec-CH-UA-Platform": '"Fuchsia"'},
        {"User-Agent": "\xff<script>"},
    ],
    ids=["nothing", "curl", "another", "nonsense"],
)
def test_on_an_unknown_platform_all_apps_are_shown(service: Service, headers: dict[str, str]) -> None:
    """Where the request does not tell the platform, no app is hidden."""
    page = Page(look(service, headers).text)
    first, rest = split_apps(page)
    assert rest == ""
    assert all(name in first for name in ("Android:", "iPhone and iPad:", "Windows:", "Mac:", "Linux:"))
    assert page.texts["script"][0].startswith('"use strict"')


@pytest.mark.parametrize(("agent", "hinted"), [("linux", True), ("windows", True), ("macos", False), ("ios", False)])
def test_who_has_no_app_for_it_is_sent_to_a_phone(service: Service, agent: str, hinted: bool) -> None:
    """Where no app of the platform opens an invitation, the page says to use a phone; elsewhere it does not."""
    text = look(service, {"User-Agent": AGENTS[agent]}).text
    assert ("Open it on a phone" in text) == hinted


# Languages


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("de-AT", "de"),
        ("en-GB,de;q=0.9", "en"),
        ("tlh,de;q=0.5", "de"),
        ("tlh", "en"),
        ("de-" + "x-" * 40 + "x", "en"),
        (",".join(["tlh"] * 40) + ",de", "en"),
        ("*", "en"),
        ("de;q=0,en", "en"),
        ("\xff;;q=,", "en"),
    ],
)
def test_the_page_is_in_the_visitors_language(service: Service, accept: str, expected: str) -> None:
    """Accept-Language decides, by its weights and with regions; who has none of ours reads English."""
    answer = look(service, {"Accept-Language": accept} if accept else {})
    page = Page(answer.text)
    assert page.attributes("html", "lang") == [answer["Content-Language"]] == [expected]
    assert page.attributes("html", "dir") == ["ltr"]
    assert page.texts["h1"] == [
        {"en": "You are invited to example.com", "de": "Du bist zu example.com eingeladen"}[expected]
    ]
    assert page.texts["time"] == [{"en": "8 March 2026, 12:00 UTC", "de": "8. März 2026, 12:00 UTC"}[expected]]


def test_a_site_can_say_which_language_is_for_all_others(make_service: MakeService) -> None:
    """A site whose people read German shows it to whoever names neither."""
    service = make_service(page=PageSettings(language="de"))
    assert look(service, {"Accept-Language": "tlh"})["Content-Language"] == "de"
    assert look(service, {"Accept-Language": "en"})["Content-Language"] == "en"


@pytest.mark.parametrize("path", translations.list_catalogs(), ids=lambda path: path.stem)
def test_no_text_is_missing_in_any_language(path: Any) -> None:
    """Every text of the templates is translated, with the placeholders of the original, and nothing else is there."""
    assert list(translations.find_faults(translations.read_catalog(path), translations.extract_texts())) == []


def test_the_check_of_translations_finds_what_is_wrong() -> None:
    """A text that is missing, empty, to be looked at, outdated or with another placeholder is told."""
    texts = Catalog()
    for text in ("Missing", "Empty", "Fuzzy", "Good", "Hello %(name)s"):
        texts.add(text)
    catalog = Catalog(locale="de")
    catalog.add("Empty")
    catalog.add("Fuzzy", "Unscharf", flags=["fuzzy"])
    catalog.add("Good", "Gut")
    catalog.add("Old", "Alt")
    catalog.add("Hello %(name)s", "Hallo %(nam)s", flags=["python-format"])
    faults = sorted(translations.find_faults(catalog, texts))
    assert [fault.partition(":")[0] for fault in faults] == [
        "has to be looked at",
        "is in no template any more",
        "is missing",
        "is not translated",
        "unknown named placeholder 'nam'",
    ]


def test_the_extraction_finds_every_text() -> None:
    """What is marked in a template is found, macros and blocks included."""
    ids = {message.id for message in translations.extract_texts()}
    assert {"Opens this link", "You are invited to %(site_name)s", "iPhone and iPad", "Copied"} <= ids


def test_every_language_has_a_direction_and_writes_times() -> None:
    """A language tells in which direction it is written, and writes a time in its own words."""
    languages = {language.code: language for language in load_languages()}
    assert {language.direction for language in languages.values()} <= {"ltr", "rtl"}
    assert languages["en"].direction == languages["de"].direction == "ltr"
    noon = datetime(2026, 3, 8, 12, tzinfo=UTC)
    assert languages["en"].format_time(noon) == "8 March 2026, 12:00"
    assert languages["de"].format_time(noon) == "8. März 2026, 12:00"


@pytest.mark.parametrize("accept", ["-" * 8000, "-".join("a" * 4000), ",".join("a" * 4000), "a-" * 4000 + ";q=0.5"])
def test_a_long_list_of_languages_costs_next_to_nothing(accept: str) -> None:
    """Whatever somebody sends as their languages, few tags are looked at, and none that is longer than tags are."""
    languages = Counted({language.code: language for language in load_languages()})
    accepted = parse_accept_header(accept, LanguageAccept)
    assert choose_language(accepted, languages, "en").code == "en"
    assert languages.looked_up < 20 * 35


class Counted(dict[str, Language]):
    """Counts how often it is asked whether a language is there."""

    looked_up = 0

    def __contains__(self, key: object) -> bool:
        self.looked_up += 1
        return super().__contains__(key)


# What is there for each kind


@pytest.mark.parametrize(
    ("fields", "heading", "title"),
    [
        ({}, "You are invited to The Site", "Invitation to The Site"),
        ({"kind": "roster", "username": "bob"}, "bob@example.com would like to chat with you", None),
        ({"kind": "reset", "username": "bob", "registration": False}, "Choose a new password", None),
        ({"uses": 1}, "This link has been used", None),
    ],
)
def test_the_sites_name_is_on_every_page(
    make_service: MakeService, fields: dict[str, Any], heading: str, title: str | None
) -> None:
    """Who is asked to come, chat or choose a password, or comes too late, reads of which site it is."""
    page = Page(look(make_service(hosts=hosts_of(site_name="The Site")), {}, **fields).text)
    assert page.texts["h1"] == [heading]
    assert page.texts["title"] == [title or f"{heading} – The Site"]
    assert "The Site" in page.texts["main"][0]


def test_a_password_link_is_no_invitation(service: Service) -> None:
    """The page of a link that sets a password speaks of a link, in its preview too."""
    text = look(service, {}, kind="reset", username="alice", registration=False).text.lower()
    assert "invit" not in text.partition("<body>")[2].replace("invites", "")
    assert 'content="invitation' not in text


def test_a_contact_invite_speaks_to_who_has_an_account_and_who_has_none(service: Service) -> None:
    """With registration both ways are told; without it none is told to choose a name."""
    both = look(service, {}, kind="roster", username="bob").text
    assert "choose them: that makes your account" in both
    assert "say yes, and you can chat" in both
    assert "choose them" not in look(service, {}, kind="roster", username="bob", registration=False).text


@pytest.mark.parametrize("username", ["a" * 400, "漢" * 340, "a" * 1023], ids=["long", "percent-encoded", "longest"])
def test_the_longest_name_has_a_page(service: Service, username: str) -> None:
    """A name of any length that is allowed is shown; what is too long for a QR code that a camera reads has none."""
    answer = look(service, {}, username=username)
    assert answer.status == 200
    assert f'<strong dir="auto">{username}@example.com' in answer.text
    assert len(answer.body) < 30_000
    assert "<svg" not in answer.text
    shorter = look(service, {}, username="a" * 250)
    assert "<svg" in shorter.text
    assert len(shorter.body) < 30_000


# Programs


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, {"kind": "register", "username": None, "inviter": None}, id="register"),
        pytest.param({"username": "alice"}, {"kind": "register", "username": "alice", "inviter": None}, id="username"),
        pytest.param(
            {"kind": "reset", "username": "alice", "registration": False},
            {"kind": "reset", "username": "alice", "inviter": None},
            id="reset",
        ),
        pytest.param(
            {"kind": "roster", "username": "bob"},
            {"kind": "roster", "username": None, "inviter": "bob@example.com"},
            id="roster",
        ),
    ],
)
def test_a_program_gets_a_fixed_set_of_facts(service: Service, fields: dict[str, Any], expected: Any) -> None:
    """With Accept: application/json the page is six facts, and never who made the invite or what it grants."""
    secret = {"source": "api/token/AAAA", "groups": ("staff",), "roles": ("prosody:admin",), "note": "for Al"}
    invite = make_invite(**fields, **secret)
    service.store.add_invites([invite])
    answer = service.ask(f"/invite?{invite.token}", headers={"Accept": "application/json"})
    assert (answer.status, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == {
        **expected,
        "host": "example.com",
        "uri": invite.uri,
        "expires_at": "2026-03-08T12:00:00Z",
    }
    assert answer["Link"] == f'<{invite.uri}>; rel="alternate"'
    assert (answer["Cache-Control"], answer["X-Robots-Tag"]) == ("no-store", "noindex")


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"uses": 1}, 410, "invite-used"),
        ({"revoked_by": "command"}, 410, "invite-revoked"),
        ({"expires_at": datetime(2026, 2, 1, tzinfo=UTC)}, 410, "invite-expired"),
        (None, 404, "invite-unknown"),
    ],
)
def test_a_program_gets_the_problem_of_an_invite_that_is_over(
    service: Service, fields: dict[str, Any] | None, status: int, kind: str
) -> None:
    """An invite that cannot be used is a problem as everywhere in the API, with nothing of the invite."""
    headers = {"Accept": "application/json, text/html"}
    answer = service.ask("/invite?none", headers=headers) if fields is None else look(service, headers, **fields)
    assert (answer.status, answer.json()["type"]) == (status, kind)
    assert set(answer.json()) == {"type", "title", "status", "detail", "request_id"}


def test_what_previews_show_is_the_sites(service: Service) -> None:
    """The Open Graph tags name the site, and hold neither the token nor a link."""
    invite = make_invite(username="alice")
    service.store.add_invites([invite])
    page = Page(service.ask(f"/invite?{invite.token}").text)
    tags = {attributes.get("property"): attributes.get("content") for tag, attributes in page.elements if tag == "meta"}
    shown = {name: content for name, content in tags.items() if name}
    assert shown == {
        "og:type": "website",
        "og:title": "Invitation to example.com",
        "og:site_name": "example.com",
        "og:description": "Open this page to see what the link is for.",
    }
