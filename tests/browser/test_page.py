"""The invite page in a real Chromium, as those see it who are invited."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from invites_wsgi.page.languages import load_languages
from tests.browser.conftest import CASES, Site, Visit
from tests.chromium import ANDROID, LINUX, read_qr

pytestmark = pytest.mark.real_server

PENDING = [case for case in CASES if case not in ("used", "expired", "revoked")]
HEADINGS = {
    "register": ("You are invited to The example.com site", "Du bist zu The example.com site eingeladen"),
    "username": ("You are invited to The example.com site", "Du bist zu The example.com site eingeladen"),
    "forever": ("You are invited to The example.com site", "Du bist zu The example.com site eingeladen"),
    "roster": ("bob@example.com would like to chat with you", "bob@example.com möchte mit dir chatten"),
    "contact": ("bob@example.com would like to chat with you", "bob@example.com möchte mit dir chatten"),
    "reset": ("Choose a new password", "Ein neues Passwort wählen"),
    "own": ("You are invited to The own.example site", "Du bist zu The own.example site eingeladen"),
    "both": ("You are invited to The both.example site", "Du bist zu The both.example site eingeladen"),
    "pale": ("You are invited to The pale.example site", "Du bist zu The pale.example site eingeladen"),
    "used": ("This link has been used", "Dieser Link wurde bereits benutzt"),
    "expired": ("This link has expired", "Dieser Link ist abgelaufen"),
    "revoked": ("This link has been revoked", "Dieser Link wurde zurückgezogen"),
    "unknown": ("This link is unknown", "Dieser Link ist unbekannt"),
}


@pytest.mark.parametrize("language", [language.code for language in load_languages()])
@pytest.mark.parametrize("case", HEADINGS)
def test_axe_finds_nothing(visit: Visit, case: str, language: str) -> None:
    """In every state and language, light and dark, axe-core has nothing to say, with everything unfolded."""
    page = visit(case, locale=language, user_agent=LINUX if language == "en" else ANDROID)
    if language in ("en", "de"):
        assert page.locator("h1").inner_text() == HEADINGS[case][language == "de"]
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    looks: list[dict[str, Any]] = [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}]
    for look in looks:
        page.emulate_media(**look)
        found = Axe().run(page).response["violations"]
        assert [(one["id"], node["html"]) for one in found for node in one["nodes"]] == []


@pytest.mark.parametrize("case", PENDING)
@pytest.mark.parametrize("somebody", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 1280, "height": 800}}])
def test_the_qr_code_says_what_the_button_does(visit: Visit, site: Site, case: str, somebody: dict[str, Any]) -> None:
    """What a camera reads off the screen is the link of the button, in light and dark, on small and large screens."""
    page = visit(case, **somebody)
    link = page.locator("a.button").first.get_attribute("href")
    invite = site.invites[case]
    assert link == (f"https://own.example/join?{invite.token}" if case == "own" else invite.uri)
    assert read_qr(page) == [link]


@pytest.mark.parametrize("language", [language.code for language in load_languages()])
@pytest.mark.parametrize("case", HEADINGS)
def test_nothing_sticks_out(visit: Visit, case: str, language: str) -> None:
    """At any width from 320 pixels on, and with letters of twice the size, nobody has to scroll sideways."""
    page = visit(case, locale=language)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    for size in ("100%", "200%"):
        page.evaluate("size => { document.documentElement.style.fontSize = size; }", size)
        for width in (320, 390, 768, 1280):
            page.set_viewport_size({"width": width, "height": 600})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_is_one_request_to_its_own_server(visit: Visit, site: Site) -> None:
    """The browser asks for the page and for nothing else, and has no complaint about it."""
    page = visit("register")
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.reload(wait_until="networkidle")
    assert (asked, said) == ([site.link_to("register")], [])
    assert page.context.cookies() == []


@pytest.mark.parametrize(
    ("agent", "shown", "folded"), [(ANDROID, "Conversations", "Gajim"), (LINUX, "Gajim", "Conversations")]
)
@pytest.mark.parametrize("javascript", [True, False])
def test_the_apps_of_the_platform_are_seen_and_others_one_click_away(
    visit: Visit, agent: str, shown: str, folded: str, javascript: bool
) -> None:
    """On a phone apps for the phone are seen, on a computer those for it; one click shows the others."""
    page = visit("register", user_agent=agent, java_script_enabled=javascript)
    assert page.get_by_text(shown, exact=True).first.is_visible()
    assert not page.get_by_text(folded, exact=True).first.is_visible()
    page.get_by_text("Apps for other devices").click()
    assert page.locator("details").get_by_text(folded, exact=True).is_visible()


def test_without_javascript_all_is_there_but_the_button_that_copies(visit: Visit, site: Site) -> None:
    """Without JavaScript the link can be pressed, read and marked; times are in UTC, and say so."""
    page = visit("register", java_script_enabled=False)
    assert page.locator("a.button").get_attribute("href") == site.invites["register"].uri
    assert page.locator("code").inner_text() == site.invites["register"].uri
    assert not page.locator("#copy").is_visible()
    assert page.locator("time").inner_text().endswith(" UTC")
    assert read_qr(page) == [site.invites["register"].uri]


@pytest.mark.parametrize("has_clipboard", [True, False], ids=["clipboard", "without"])
def test_the_link_can_be_copied(visit: Visit, site: Site, has_clipboard: bool) -> None:
    """The button copies the link and says so, also where pages have no clipboard, as without HTTPS."""
    page = visit("register", permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("status").get_by_text("Copied").wait_for()
    if has_clipboard:
        assert page.evaluate("navigator.clipboard.readText()") == site.invites["register"].uri
    else:
        assert page.evaluate("getSelection().toString()") == site.invites["register"].uri


def test_times_are_in_the_visitors_zone(visit: Visit, site: Site) -> None:
    """With JavaScript the end of an invite is told in the visitor's own zone and language."""
    text = visit("register", locale="de-DE", timezone_id="Asia/Tokyo").locator("time").inner_text()
    assert re.search(r"\d{1,2}\. \w+ \d{4} um \d{1,2}:\d{2} (OEZ|JST|GMT\+9)", text), text
    text = visit("register", locale="en-GB").locator("time").inner_text()
    assert re.search(r"\d{1,2} \w+ \d{4} at \d{1,2}:\d{2} (CET|GMT\+1)", text), text
    text = visit("register", locale="en-US").locator("time").inner_text()
    assert re.search(r"\w+ \d{1,2}, \d{4} at \d{1,2}:\d{2}.[AP]M (CET|GMT\+1)", text), text


def test_the_keyboard_is_enough(visit: Visit) -> None:
    """With the tab key alone every link and button is reached in the order of the page, and it shows where one is."""
    page = visit("both")
    reached: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement === document.body ? null : document.activeElement.innerText")
        if name in {None, *reached[:1]}:
            break
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert float(width.removesuffix("px")) >= 2
        reached.append(name)
    assert reached[:3] == ["Open in your chat app", "Join in the browser", "F-Droid"]
    assert reached[-2:] == ["Apps for other devices", "Copy link"]
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert page.get_by_text("Gajim", exact=True).is_visible()


def test_a_screen_reader_finds_its_way(visit: Visit) -> None:
    """There is one main part with one heading of the first level, steps in a list, and no level is left out."""
    page = visit("register")
    assert page.get_by_role("main").count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.locator("ol > li").count() == 3


def test_print_keeps_the_link_and_the_code(visit: Visit) -> None:
    """On paper there is nothing to press; where the buttons lead, the steps and the QR code stay."""
    page = visit("register")
    page.emulate_media(media="print")
    assert not page.locator("#copy").is_visible()
    shown = page.locator("a.button").evaluate("each => getComputedStyle(each, '::after').content")
    assert shown.startswith('": xmpp:example.com?register;preauth=')
    assert page.locator("code").is_visible()
    assert page.locator("svg").is_visible()


def test_the_page_turns_round_for_scripts_from_right_to_left(visit: Visit) -> None:
    """The numbers of the steps stand where a line begins, on whichever side that is."""
    page = visit("register", java_script_enabled=True)
    code = """() => { const step = document.querySelector('.steps > li'), text = step.querySelector('h3');
        const box = step.getBoundingClientRect(), range = document.createRange(); range.selectNodeContents(text);
        const words = range.getBoundingClientRect();
        return [words.left - box.left, box.right - words.right]; }"""
    before, _ = page.evaluate(code)
    page.evaluate("document.documentElement.dir = 'rtl'")
    _, after = page.evaluate(code)
    assert before == pytest.approx(after)
    assert before > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_links_are_read_from_left_to_right(visit: Visit, site: Site) -> None:
    """A link keeps its order on a page that is read from the right."""
    page = visit("register")
    page.evaluate("document.documentElement.dir = 'rtl'")
    assert page.locator("code").evaluate("each => getComputedStyle(each).direction") == "ltr"


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_a_button_of_the_pages_own_color_is_seen(visit: Visit, color_scheme: Any) -> None:
    """A button whose colour is that of the page has a line around it that is not."""
    page = visit("pale", color_scheme=color_scheme)
    [border] = page.locator("a.button").evaluate_all("all => all.map(each => getComputedStyle(each).borderTopColor)")
    assert border in ("rgb(134, 140, 149)", "rgb(133, 140, 150)")


def test_a_failure_to_copy_is_told(visit: Visit) -> None:
    """Where nothing can be copied the page says so, and has marked the link."""
    page = visit("register")
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined}); document.execCommand = () => false"
    )
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("status").get_by_text("Copying is not possible here").wait_for()


def test_the_sites_color_and_logo_are_seen(visit: Visit) -> None:
    """The button has the site's colour, with a text that can be read on it, and the logo is shown."""
    page = visit("own")
    button = page.locator("a.button")
    assert button.evaluate("each => getComputedStyle(each).backgroundColor") == "rgb(255, 216, 0)"
    assert button.evaluate("each => getComputedStyle(each).color") == "rgb(0, 0, 0)"
    assert page.locator("img.logo").evaluate("each => each.complete && each.naturalWidth > 0")
