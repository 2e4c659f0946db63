"""The invite page as a site has it: its own logo, colour, contact, button, apps and templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from invites_core import Hosts, HostSettings
from invites_wsgi import SettingsError
from invites_wsgi.page.apps import load_apps
from invites_wsgi.page.looks import find_text_color
from invites_wsgi.page.settings import HostPage, PageSettings
from tests.helpers import make_invite
from tests.privileges import without_power_over_files
from tests.wsgi.conftest import MakeService
from tests.wsgi.pages import Page
from tests.wsgi.support import Service, hosts_of

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0h1v1H0z"/></svg>'
TOKEN_HOLE = "{token}"
NO_IMAGE = "the logo {path} is neither SVG nor PNG, JPEG, GIF or WebP"
ITSELF = 'a template extends or includes itself; ours is "shipped/" and its name'
WEB = "web = { x = 'https://x.example/' }"


def page_of(**fields: Any) -> PageSettings:
    """Return page settings in which example.com is set as given."""
    return PageSettings(hosts={"example.com": HostPage(**fields)})


def read(service: Service, *, headers: dict[str, str] | None = None, **fields: Any) -> Page:
    """Return the page of a new invite."""
    invite = make_invite(**fields)
    service.store.add_invites([invite])
    return Page(service.ask(f"/invite?{invite.token}", headers=headers or {}).text)


@pytest.mark.parametrize("state", ["pending", "used", "unknown"])
def test_the_contact_is_on_every_page(make_service: MakeService, state: str) -> None:
    """Whoever is stuck is told whom to ask, also where the invite is used or there is none."""
    service = make_service(page=page_of(contact="mailto:admin@example.com"), hosts=hosts_of())
    unknown = Page(service.ask("/invite?unknown").text)
    page = unknown if state == "unknown" else read(service, uses=int(state == "used"))
    assert "mailto:admin@example.com" in page.attributes("a", "href")
    assert "admin@example.com" in page.texts["a"]


def test_of_several_hosts_none_is_named_for_an_unknown_invite(make_service: MakeService) -> None:
    """Where there are several sites, a link that is no invite's looks like none of them."""
    pages = {host: HostPage(contact=f"mailto:admin@{host}", color="#123456") for host in ("example.com", "b.example")}
    service = make_service(page=PageSettings(hosts=pages), hosts=Hosts(dict.fromkeys(pages, HostSettings())))
    answer = service.ask("/invite?unknown")
    assert answer.status == 404
    assert "admin@" not in answer.text
    assert "#123456" not in answer.text
    assert "mailto:admin@b.example" in read(service, host="b.example").attributes("a", "href")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(SVG, "image/svg+xml", id="svg"),
        pytest.param(b"\xef\xbb\xbf<?xml version='1.0'?>\n" + SVG, "image/svg+xml", id="svg-with-declaration"),
        pytest.param(
            b"<!-- ours -->\n<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' ''>" + SVG, "image/svg+xml", id="doctype"
        ),
        pytest.param(b"\x89PNG\r\n\x1a\n....", "image/png", id="png"),
        pytest.param(b"\xff\xd8\xff....", "image/jpeg", id="jpeg"),
        pytest.param(b"GIF89a....", "image/gif", id="gif"),
        pytest.param(b"RIFF....WEBP....", "image/webp", id="webp"),
    ],
)
def test_the_logo_stands_in_the_page(make_service: MakeService, tmp_path: Path, content: bytes, kind: str) -> None:
    """A logo is a part of the page, so that nothing is loaded, and its text for those who do not see it is the name."""
    (tmp_path / "logo").write_bytes(content)
    service = make_service(page=page_of(logo=tmp_path / "logo"), hosts=hosts_of(site_name="Example"))
    page = read(service)
    [source] = page.attributes("img", "src")
    assert (source or "").startswith(f"data:{kind};base64,")
    assert page.attributes("img", "alt") == ["Example"]


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        pytest.param(None, "cannot read the logo {path}: no such file or directory", id="missing"),
        pytest.param(b"hello", NO_IMAGE, id="no-image"),
        pytest.param(b"<?xml version='1.0'?><plist/>", NO_IMAGE, id="xml"),
        pytest.param(b"<html><svg>", NO_IMAGE, id="html"),
        pytest.param(SVG + b" " * 70_000, "the logo {path} has more than 16 KiB", id="large"),
    ],
)
def test_a_logo_that_cannot_be_shown_stops_the_start(
    make_service: MakeService, tmp_path: Path, content: bytes | None, mistake: str
) -> None:
    """A logo that is missing, too large or no image is named in one line before anything is served."""
    path = tmp_path / "logo"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"^{re.escape(mistake.format(path=path))}$"):
        make_service(page=page_of(logo=path))


@pytest.mark.parametrize(
    ("color", "text"),
    [("#ffffff", "#000"), ("#000000", "#fff"), ("#1f5fbf", "#fff"), ("#ffd800", "#000"), ("#777777", "#000")],
)
def test_the_buttons_text_can_be_read_on_the_sites_color(make_service: MakeService, color: str, text: str) -> None:
    """Whatever colour a site has, what stands on it is black or white, whichever is read better."""
    assert find_text_color(color) == text
    [style] = read(make_service(page=page_of(color=color))).texts["style"]
    assert style.endswith(f":root{{--accent:{color};--on-accent:{text}}}.button{{border-color:var(--line)}}")


def test_a_site_can_have_its_own_button(make_service: MakeService) -> None:
    """A button of the site's own stands beside that for the app, with the token in its link."""
    service = make_service(page=page_of(button_label="Register here", button_link=f"https://x.example/?t={TOKEN_HOLE}"))
    page = read(service)
    buttons = [attributes for tag, attributes in page.elements if tag == "a" and attributes.get("class")]
    assert [(button["href"] or "").partition(":")[0] for button in buttons] == ["xmpp", "https"]
    assert re.fullmatch(r"https://x\.example/\?t=\S{24}", buttons[1]["href"] or "")
    assert "Register here" in page.texts["a"]


def test_another_service_than_xmpp_has_nothing_of_it(make_service: MakeService) -> None:
    """With xmpp off there is no xmpp: URI and no app: the button, the QR code and the link to copy are the site's."""
    service = make_service(page=page_of(button_label="Join", button_link=f"https://x.example/{TOKEN_HOLE}", xmpp=False))
    invite = make_invite()
    service.store.add_invites([invite])
    answer = service.ask(f"/invite?{invite.token}")
    assert "xmpp" not in answer.text.lower()
    assert "Conversations" not in answer.text
    assert answer["Link"] == f'<https://x.example/{invite.token}>; rel="alternate"'
    page = Page(answer.text)
    assert page.attributes("a", "href") == page.texts["code"] == [f"https://x.example/{invite.token}"]
    facts = service.ask(f"/invite?{invite.token}", headers={"Accept": "application/json"}).json()
    assert facts["uri"] == f"https://x.example/{invite.token}"
    for kind in ("roster", "reset"):
        page = read(service, kind=kind, username="bob", registration=False)
        assert "xmpp" not in page.texts["main"][0].lower()


def test_apps_can_be_replaced(make_service: MakeService, tmp_path: Path) -> None:
    """A file of apps shows instead of ours, those first that take invites."""
    path = tmp_path / "apps.toml"
    path.write_text(
        '[B]\nweb = { "b.example" = "https://b.example/" }\n'
        '[A]\ntakes_invites = true\nios = { "a" = "https://a.example/" }\n'
    )
    page = read(make_service(page=PageSettings(apps=path)))
    text = page.texts["main"][0]
    assert text.index("iPhone and iPad:") < text.index("Web browser:")
    assert "Conversations" not in text


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ("[A", "not valid TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("A = 1", 'A: must be a table of an app, such as ["A"]'),
        ("", "must hold from 1 to 50 apps, and holds 0"),
        ("['']\nweb = { x = 'https://x.example/' }", "an app has no name"),
        ("[A]\nweb = { '' = 'https://x.example/' }", '"A".web: a store has no name'),
        ("[A]", '"A": names no platform; known are android, ios, windows, macos, linux, web'),
        (
            "[A]\nsymbian = { x = 'https://x.example/' }",
            '"A".symbian: unknown key; known are takes_invites, android, ios, windows, macos, linux, web',
        ),
        ("[A]\ntakes_invites = 1", '"A".takes_invites: must be true or false'),
        ("[A]\nios = 'https://x.example/'", '"A".ios: must be a table, such as { "F-Droid" = "https://f-droid.org/" }'),
        ("[A]\nios = {}", '"A".ios: must be a table, such as { "F-Droid" = "https://f-droid.org/" }'),
        (
            "[A]\nios = { x = 'javascript:alert(1)' }",
            '"A".ios."x": must be an http: or https: URL in ASCII without spaces',
        ),
        (
            "\n".join(f"[A{n}]\nweb = {{ x = 'https://x.example/' }}" for n in range(51)),
            "must hold from 1 to 50 apps, and holds 51",
        ),
    ],
)
def test_a_mistake_in_the_apps_is_named(tmp_path: Path, content: str, mistake: str) -> None:
    """A file of apps that is not as it should be is refused with the place of the mistake."""
    path = tmp_path / "apps.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=f"^{re.escape(f'{path}: {mistake}')}$"):
        load_apps(path)


def test_a_file_of_apps_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file of apps that is not there, or is closed to the service, is named with the reason."""
    path = tmp_path / "apps.toml"
    with pytest.raises(SettingsError, match=f"^cannot read {path}: no such file or directory$"):
        load_apps(path)
    path.write_text("")
    path.chmod(0)
    with without_power_over_files(), pytest.raises(SettingsError, match=f"^cannot read {path}: permission denied$"):
        load_apps(path)


def test_our_apps_are_in_order() -> None:
    """Every platform but the web has an app, every phone one that takes invites, and no link carries anything on."""
    apps = load_apps(None)
    platforms = {platform for app in apps for platform in app.downloads}
    assert platforms >= {"android", "ios", "windows", "macos", "linux"}
    assert {platform for app in apps if app.takes_invites for platform in app.downloads} >= {"android", "ios", "macos"}
    links = [link for app in apps for places in app.downloads.values() for link in places.values()]
    assert all(link.startswith("https://") and "referrer" not in link for link in links)


# Templates of the site's own


def make_templates(folder: Path, **files: str) -> PageSettings:
    """Write templates, and return the settings that use them."""
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content, "utf-8")
    return PageSettings(templates=folder)


def test_a_template_overrides_single_blocks(make_service: MakeService, tmp_path: Path) -> None:
    """A template of the site's own puts its words into one block, and leaves all others as they are."""
    block = "{% block footer %}<p>Run by {{ site_name }} & {{ super() }}</p>{% endblock %}"
    content = '{% extends "shipped/invite.html" %}' + block
    service = make_service(page=make_templates(tmp_path, invite_html=content), hosts=hosts_of(site_name="<Us>"))
    page = read(service)
    assert "Run by <Us> & " in page.texts["p"]
    assert page.texts["h1"] == ["You are invited to <Us>"]
    assert "Get an app" in page.texts["h3"]


def test_a_style_of_the_sites_own_is_admitted(make_service: MakeService, tmp_path: Path) -> None:
    """extra.css comes after our style, and invite.css instead of it; the policy admits what is there."""
    page = read(make_service(page=make_templates(tmp_path, extra_css="h1 { color: red; }")))
    [style] = page.texts["style"]
    assert style.startswith(":root")
    assert style.endswith("h1 { color: red; }")
    page = read(make_service(page=make_templates(tmp_path, invite_css="body {}")))
    assert page.texts["style"] == ["body {}h1 { color: red; }"]


@pytest.mark.parametrize(
    ("name", "content", "mistake"),
    [
        ("invite.html", "{% if %}", "invite.html, line 1: Expected an expression, got 'end of statement block'"),
        ("invite.html", '{% extends "shiped/invite.html" %}', "there is no template shiped/invite.html"),
        ("invite.html", "\n{{ nothing.there }}", "invite.html, line 2: UndefinedError: 'nothing' is undefined"),
        ("invite.html", "{{ uri.upper() }}", "invite.html, line 1: UndefinedError: 'uri' is undefined"),
        (
            "invite.html",
            '{% extends "shipped/invite.html" %}{% block foooter %}x{% endblock %}',
            "invite.html: ours has no block foooter",
        ),
        (
            "invite.html",
            '{% extends "invite.html" %}',
            ITSELF,
        ),
        (
            "apps.html",
            '{% extends "apps.html" %}',
            ITSELF,
        ),
        ("apps.html", "{{ 1 / 0 }}", "apps.html, line 1: ZeroDivisionError: division by zero"),
        ("apps.html", "{{ apps + 1 }}", "apps.html, line 1: TypeError: "),
        ("extra.css", "</style>", "extra.css holds </, which would end it within the page"),
        ("extra.css", b"/* \xe9 */", "extra.css is not in UTF-8"),
        ("invite.js", b"\xff", "invite.js is not in UTF-8"),
    ],
)
def test_a_template_that_cannot_be_used_stops_the_start(
    make_service: MakeService, tmp_path: Path, name: str, content: str | bytes, mistake: str
) -> None:
    """A mistake in a template shows at the start, in a line with its place, and not to the first visitor."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError) as raised:
        make_service(page=PageSettings(templates=tmp_path))
    assert str(raised.value).startswith(f"page.templates: {mistake}")
    assert "\n" not in str(raised.value)


def test_a_template_is_tried_with_the_settings_of_every_host(make_service: MakeService, tmp_path: Path) -> None:
    """What a site's template takes for granted is so where its hosts have it, and is a mistake where one has not."""
    block = (
        "{% block footer %}{% if state == 'pending' %}{{ button.label }}{{ contact.upper() }}{% endif %}{% endblock %}"
    )
    templates = make_templates(tmp_path, invite_html='{% extends "shipped/invite.html" %}' + block).templates
    full = HostPage(button_label="Join", button_link="https://x.example/{token}", contact="mailto:a@b.example")
    pages = {"example.com": full, "b.example": full}
    service = make_service(
        page=PageSettings(templates=templates, hosts=pages), hosts=Hosts(dict.fromkeys(pages, HostSettings()))
    )
    assert "JoinMAILTO:A@B.EXAMPLE" in read(service).texts["footer"][0]
    lacking = PageSettings(templates=templates, hosts={"example.com": full, "b.example": HostPage()})
    with pytest.raises(SettingsError, match="'None' has no attribute"):
        make_service(page=lacking)


def test_a_folder_of_templates_that_is_missing_stops_the_start(make_service: MakeService, tmp_path: Path) -> None:
    """A folder that is not there is a mistake, and not the page as it would be without."""
    with pytest.raises(SettingsError, match=f"^page.templates: there is no folder {tmp_path / 'x'}$"):
        make_service(page=PageSettings(templates=tmp_path / "x"))


def test_a_language_that_there_is_not_stops_the_start(make_service: MakeService) -> None:
    """The language for all others must be one that the page has."""
    with pytest.raises(SettingsError, match=r"^page\.language: must be one of en, "):
        make_service(page=PageSettings(language="tlh"))
