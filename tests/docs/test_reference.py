"""The reference pages are complete, and name nothing that is not there."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import click
import pytest
from jinja2 import Template
from werkzeug.test import Client

import invites_core
import invites_wsgi
from invites_core import Event, Hosts, HostSettings, InvitesError, KeyPolicy, Redemption, testing
from invites_core.durations import parse_duration
from invites_core.events import EVENT_NAMES
from invites_core.stores.memory import MemoryStore
from invites_wsgi import App, Settings, config, config_values
from invites_wsgi.bodies import CREATION_FIELDS
from invites_wsgi.cli.main import command
from invites_wsgi.errors import ERRORS, get_error_kind
from invites_wsgi.openapi import build_openapi
from invites_wsgi.page.settings import HostPage, PageSettings
from invites_wsgi.page.view import PageView
from invites_wsgi.representation import invite_details_to_json, invite_to_json, key_to_json, policy_to_json
from tests.docs.pages import PAGES, ROOT, find_code, read_blocks, read_rows, read_sections
from tests.helpers import NOON, make_invite, make_key

DOCS: Final = ROOT / "docs"
WIRE: Final = ROOT / "tests" / "wire" / "prosody-0.12.3.json"
LOG_FIELDS: Final = {"message", "key", "reason", "ms", "client", "request_id"}
EXIT_CODES: Final = {0, 130} | {kind.exit_code for kind in ERRORS.values()}


def read_table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the tables under a heading of a page."""
    return read_rows(read_sections(DOCS / page)[heading])


def list_settings() -> dict[str, object]:
    """Return the keys that a settings file may hold, each with its default."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
    known: dict[str, object] = {name: None if name == "database" else defaults[name] for name in config._TOP}
    for section, names in config._SECTIONS.items():
        known |= {f"{section}.{name}": defaults[field] for name, field in names.items()}
    known |= {f"page.{name}": getattr(PageSettings(), name) for name in config_values.PAGE_CHECKS}
    known |= {f'hosts."HOST".{name}': getattr(HostSettings(), name) for name in config_values.HOST_CHECKS}
    known |= {f'hosts."HOST".{name}': getattr(HostPage(), name) for name in config_values.HOST_PAGE_CHECKS}
    return known


def read_settings_page() -> dict[str, list[str]]:
    """Return the rows of the settings page that begin with a key, by key."""
    sections = ("The database", "`[http]`", "`[log]`", "`[page]`", "A host")
    rows = [row for heading in sections for row in read_table("settings.md", heading)]
    keys = [find_code(row[0])[0] for row in rows]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, rows, strict=True))


def test_every_setting_has_its_line_in_the_settings_page() -> None:
    """The settings page names the keys that the program takes, and no others."""
    assert read_settings_page().keys() == list_settings().keys()


@pytest.mark.parametrize(
    ("key", "default"), [pytest.param(*item, id=item[0]) for item in list_settings().items() if item[1] is not None]
)
def test_the_default_on_the_settings_page_is_the_programs(key: str, default: object) -> None:
    """The default that the settings page gives is what the program takes where nothing is said."""
    shown: Any = tomllib.loads(f"default = {find_code(read_settings_page()[key][2])[0]}")["default"]
    if isinstance(default, tuple):
        shown = tuple(shown)
    elif key.endswith("expiry"):
        shown = parse_duration(shown, field=key)
    assert shown == default


def test_the_ranges_on_the_settings_page_are_the_programs() -> None:
    """The numbers that the settings page allows are those that the program allows."""
    types = {key: row[1] for key, row in read_settings_page().items()}
    assert types["http.trusted_proxies"] == f"number, 0 to {config_values.MAX_PROXIES}"
    assert types["http.workers"] == f"number, 1 to {config_values.MAX_WORKERS}"
    assert types["http.threads"] == f"number, 1 to {config_values.MAX_THREADS}"


def test_the_examples_have_every_key() -> None:
    """The files that the pages on settings and on the invite page begin with show every key but ``invites``.

    That one has no use by itself.
    """
    shown = set()
    for page in ("settings.md", "invite-page.md"):
        example = next(block for block in read_blocks(DOCS / page) if block.language == "toml")
        content = tomllib.loads(example.text)
        shown |= {key for key, value in content.items() if not isinstance(value, dict)}
        for section, table in content.items():
            if section == "hosts":
                shown |= {f'hosts."HOST".{key}' for host in table.values() for key in host}
            elif isinstance(table, dict):
                shown |= {f"{section}.{key}" for key in table}
    assert shown == list_settings().keys() - {"invites"}


def list_subcommands() -> dict[str, click.Command]:
    """Return the subcommands by what a reader types, those of a group with the group's name in front."""
    found: dict[str, click.Command] = {}
    for name, single in command.commands.items():
        inner = single.commands if isinstance(single, click.Group) else {}
        found |= {f"{name} {one}": of_group for one, of_group in inner.items()} or {name: single}
    return found


SUBCOMMANDS: Final = list_subcommands()


def list_options(single: click.Command) -> set[str]:
    """Return the options of a command as a reader types them, with what stands for their value."""
    context = click.Context(single)
    shown = set()
    for param in single.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None:
            shown.add(record[0])
    return shown


def list_options_on_page(heading: str) -> set[str]:
    """Return the options in the tables under a heading of the command's page."""
    options = {find_code(row[0])[0] for row in read_table("command.md", heading) if row[0].startswith("`--")}
    if "(#policy-options)" in read_sections(DOCS / "command.md")[heading] and heading.startswith("`"):
        options |= list_options_on_page("Policy options")
    return options


def test_every_subcommand_has_its_section_in_the_commands_page() -> None:
    """The page of the command has a section for each subcommand, and none for others."""
    headings = [re.fullmatch(r"`invites-api (.+)`", heading) for heading in read_sections(DOCS / "command.md")]
    assert {found[1] for found in headings if found} == SUBCOMMANDS.keys()


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_has_its_line_in_the_commands_page(name: str) -> None:
    """The section of a subcommand, with those on the options of all, names its options and no others."""
    of_all = list_options_on_page("Options of all") - {"--version"}
    assert list_options_on_page(f"`invites-api {name}`") | of_all == list_options(SUBCOMMANDS[name])
    assert not list_options_on_page(f"`invites-api {name}`") & of_all


def test_the_options_of_the_command_itself_are_on_its_page() -> None:
    """The options that stand before a subcommand are those that the page gives for all, and the version."""
    assert list_options_on_page("Options of all") == list_options(command)


def test_the_usage_on_the_commands_page_is_the_programs() -> None:
    """The first block of the command's page has a line for each subcommand, with its arguments and options."""
    lines = read_blocks(DOCS / "command.md")[0].text.splitlines()
    of_all = list_options_on_page("Options of all")
    seen = set()
    for line in lines:
        _, name, *rest = line.split(" ", 2)
        if name not in SUBCOMMANDS:
            inner, _, tail = rest[0].partition(" ")
            name, rest = f"{name} {inner}", [tail]
        seen.add(name)
        single = SUBCOMMANDS[name]
        context = click.Context(single)
        arguments = [param.make_metavar(context) for param in single.params if isinstance(param, click.Argument)]
        shown = "".join(rest)
        options = set(re.findall(r"\[(--[^]]+)\]", shown))
        if "[policy options]" in shown:
            options |= list_options_on_page("Policy options")
        needed = {param.opts[0] for param in single.params if isinstance(param, click.Option) and param.required}
        shown = re.sub(r" ?\[(--[^]]+|policy options)\]", "", shown)
        of_need = {f"{option} {value}" for option, value in re.findall(r"(--\S+) (\S+)", shown)}
        assert {option.split(" ")[0] for option in of_need} == needed
        assert options | of_need == list_options(single) - of_all
        assert re.sub(r" ?--\S+ \S+", "", shown) == " ".join(arguments)
    assert seen == SUBCOMMANDS.keys()


def test_every_exit_code_has_its_line_in_the_commands_page() -> None:
    """The page of the command says what each exit code means."""
    assert {int(row[0]) for row in read_table("command.md", "Exit codes")} == EXIT_CODES


def test_every_error_has_its_line_in_the_http_page() -> None:
    """The HTTP page gives the type, the class and the status of every error, and names no others."""
    shown: dict[str, tuple[str, str]] = {}
    for row in read_table("http.md", "Errors"):
        if row[1]:
            # A status that differs in places comes after the one of the table.
            shown[find_code(row[1])[0]] = (find_code(row[0])[0], row[2].partition(";")[0])
    expected: dict[str, tuple[str, str]] = {}
    for error_class, kind in ERRORS.items():
        error = error_class.__new__(error_class)
        expected[error_class.__name__] = (get_error_kind(error)[0], str(kind.status))
    assert shown == expected


@pytest.mark.parametrize("name", ["Busy", "StorageBusy", "OutcomeUnknown", "CorruptRecord", "StorageError"])
def test_the_retry_after_on_the_http_page_is_the_programs(name: str) -> None:
    """The HTTP page gives the seconds after which to try again."""
    [row] = [row for row in read_table("http.md", "Errors") if row[1] == f"`{name}`"]
    [error_class] = [error_class for error_class in ERRORS if error_class.__name__ == name]
    error: InvitesError = error_class() if name in {"Busy", "StorageBusy"} else error_class("what happened")
    assert row[5] == str(error.retry_after)  # type: ignore[attr-defined]  # all of these have it


def test_the_invite_on_the_http_page_has_every_field() -> None:
    """The JSON of an invite on the HTTP page has the fields of the program, and each is explained."""
    fields_of_invite = list(invite_to_json(make_invite(), NOON))
    shown = [json.loads(block.text) for block in read_blocks(DOCS / "http.md") if block.language == "json"]
    assert list(shown[0]) == fields_of_invite
    rows = read_table("http.md", "An invite as JSON")
    assert [name for row in rows for name in find_code(row[0])] == fields_of_invite


def test_what_the_http_page_adds_for_one_invite_is_the_programs() -> None:
    """The fields that only one invite by itself has, and those of its uses, are explained in their order."""
    redemption = Redemption(token="", redemption_id="a", redeemer=None, redeemed_at=NOON)
    shown = invite_details_to_json(make_invite(), [redemption], NOON)
    added = [name for name in shown if name not in invite_to_json(make_invite(), NOON)]
    rows = read_table("http.md", "One invite")
    assert [find_code(row[0])[0] for row in rows] == [*added, *shown["redemptions"][0]]


def test_the_bodies_on_the_http_page_have_every_field() -> None:
    """The fields of each JSON body are those that the program takes, with their defaults."""
    rows = read_table("http.md", "The body")
    assert [find_code(row[0])[0] for row in rows] == list(CREATION_FIELDS)
    schemas = build_openapi()["components"]["schemas"]
    defaults = {
        name: schema["default"]
        for name, schema in schemas["CreationRequest"]["properties"].items()
        if "default" in schema
    }
    assert {
        find_code(row[0])[0]: json.loads(row[2].strip("`")) for row in rows if find_code(row[0])[0] in defaults
    } == defaults
    redeem = read_table("http.md", "Redeeming an invite")
    assert [find_code(row[0])[0] for row in redeem if row[0].startswith("`")] == [
        *schemas["RedeemRequest"]["properties"]
    ]


def test_every_route_has_its_line_in_the_http_page() -> None:
    """The first table of the HTTP page has the requests of the API, and no others."""
    routes = {
        f"{method.upper()} {path.replace('{token}', 'TOKEN')}"
        for path, item in build_openapi()["paths"].items()
        for method in item
        if method != "parameters"
    }
    shown = {code for row in read_table("http.md", "HTTP reference") for code in find_code(row[0])}
    assert {code for code in shown if " /invites_api" in code} == routes


def test_the_key_on_the_http_page_has_every_field() -> None:
    """The JSON of a key on the HTTP page has the fields of the program."""
    shown = [json.loads(block.text) for block in read_blocks(DOCS / "http.md") if block.language == "json"]
    [key] = [one for one in shown if "policy" in one]
    assert list(key) == [*key_to_json(make_key()), "quota_left"]
    assert list(key["policy"]) == list(policy_to_json(KeyPolicy()))


def test_the_policies_page_has_every_option() -> None:
    """The policy table names each field of a policy once, with its option and its default."""
    rows = read_table("policies.md", "The table")
    assert [find_code(row[0])[0] for row in rows] == [field.name for field in fields(KeyPolicy)]
    options = {option.split(" ")[0] for option in list_options_on_page("Policy options")}
    assert {find_code(row[1])[0] for row in rows} == options
    defaults = policy_to_json(KeyPolicy())
    for row in rows:
        [shown] = find_code(row[2])[:1]
        assert json.loads(shown) == defaults[find_code(row[0])[0]], row[0]


def test_the_redemption_page_names_only_errors_that_there_are() -> None:
    """Each class in the tables of the redemption page is one of the library's."""
    rows = read_table("redemption.md", "What comes out")
    classes = {code for row in rows for code in find_code(row[1]) if code[0].isupper()}
    assert {
        "InviteUsed",
        "InviteExpired",
        "InviteRevoked",
        "InviteUnknown",
        "WrongRedeemer",
        "IdempotencyConflict",
        "RedemptionReleased",
        "OutcomeUnknown",
    } <= classes
    assert all(hasattr(invites_core, name) for name in classes)


def test_the_store_page_names_what_is_shipped() -> None:
    """The page for authors of stores names all that `invites_core.testing` has, and every feature of a store."""
    text = (DOCS / "write-a-store.md").read_text("utf-8")
    for name in testing.__all__:
        assert name in text, name
    rows = read_table("write-a-store.md", "Features")
    assert {find_code(row[0])[0] for row in rows} == {"COUNTED_USES", "HISTORY", "LARGE_LISTS"}


def test_the_headers_on_the_http_page_are_the_programs() -> None:
    """The headers that the HTTP page gives for every answer, and for CORS, are on a refusal, with their values."""
    store = MemoryStore()
    app = App(Settings(database="memory:"), key_store=store, invite_store=store)
    headers = Client(app).get("/invites_api").headers
    rows = read_table("http.md", "CORS") + read_table("http.md", "Headers of every answer")
    shown = {find_code(row[0])[0]: find_code(row[1])[:1] for row in rows}
    assert shown.pop("X-Request-Id") is not None
    assert {name: [headers[name]] for name in shown} == shown


def test_every_reason_in_the_log_has_its_line_in_the_settings_page() -> None:
    """The settings page explains each reason for which a key is refused, and no others."""
    sources = [file for package in (invites_core, invites_wsgi) for file in Path(package.__path__[0]).rglob("*.py")]
    reasons = {reason for file in sources for reason in re.findall(r'InvalidKey\("([^"]+)"', file.read_text("utf-8"))}
    rows = [row for row in read_table("settings.md", "The log") if len(row) == 2]
    assert {find_code(row[0])[0] for row in rows} - LOG_FIELDS == reasons


def test_every_event_has_its_line_in_the_library_page() -> None:
    """The library page explains each event, and no others, and names only fields that an event has."""
    rows = [row for row in read_table("library.md", "Events") if len(row) == 3]
    assert [find_code(row[0])[0] for row in rows] == list(EVENT_NAMES)
    known = {field.name for field in fields(Event)} - {"name", "at"}
    assert {name for row in rows for name in find_code(row[2])} == known


def test_every_event_has_its_line_in_the_settings_page() -> None:
    """The part on the log names each event once."""
    rows = read_table("settings.md", "Events")
    assert sorted(name for row in rows for name in find_code(row[0])) == sorted(EVENT_NAMES)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case["name"])
        for case in json.loads(WIRE.read_text("utf-8"))["cases"]
        if "differs_because" in case["expect"]
    ],
)
def test_every_difference_on_the_wire_has_its_line(case: dict[str, Any]) -> None:
    """The page for who comes from mod_invites_api has a line for each recorded difference, with both answers."""
    rows = read_table("coming-from-mod-invites-api.md", "What differs")
    [row] = [row for row in rows if row[-1] == f"`{case['name']}`"]
    expect = case["expect"]
    assert row[1:4] == [str(case["prosody"]["status"]), str(expect["status"]), expect["differs_because"]]


def test_no_line_on_the_wire_is_made_up() -> None:
    """The page for who comes from mod_invites_api has no difference that was not recorded."""
    cases = json.loads(WIRE.read_text("utf-8"))["cases"]
    recorded = {case["name"] for case in cases if "differs_because" in case["expect"]}
    rows = read_table("coming-from-mod-invites-api.md", "What differs")
    assert {find_code(row[-1])[0] for row in rows} == recorded


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A link to another page, or to a heading of one, leads to what is there."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.is_file(), f"{page.name}: {target}"
        if anchor:
            assert anchor in {make_anchor(heading) for heading in read_sections(linked)}, f"{page.name}: {target}"


def make_anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_page_on_the_invite_page_names_every_block_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template of a site's own can override and use is all named, and nothing else."""
    template = (Path(invites_wsgi.__file__).parent / "templates" / "invite.html").read_text("utf-8")
    rows = read_table("invite-page.md", "Templates of your own")
    split = next(number for number, row in enumerate(rows) if find_code(row[0]) == ["state"])
    blocks = [find_code(row[0])[0] for row in rows[:split]]
    assert sorted(blocks) == sorted(re.findall(r"{% block (\w+) %}", template))
    values = {name for row in rows[split:] for name in find_code(row[0])}
    seen: dict[str, object] = {}
    view = PageView(PageSettings(), Hosts())
    view._pages = {"en": Template("")}
    monkeypatch.setattr(view._pages["en"], "render", seen.update)
    view.render(make_invite(), "pending", language=view.languages["en"], platform=None)
    assert values == set(seen)
