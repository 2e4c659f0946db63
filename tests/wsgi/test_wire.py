"""What Prosody answers on the wire, recorded, and what this service answers to the same requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from invites_core import ApiKeys, IssuedKey
from invites_core.invites import is_token
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from tests.wsgi.support import Answer, ask, ask_server, count_invites, make_serve

RECORDED = Path(__file__).parent.parent / "wire" / "prosody-0.12.3.json"
CASES: list[dict[str, Any]] = json.loads(RECORDED.read_text("utf-8"))["cases"]


@dataclass
class Wire:
    """A service over SQLite with a key of example.com, and how to send it a request."""

    send: Callable[..., Answer]
    store: SqliteStore
    issued: IssuedKey

    def fill(self, text: str) -> str:
        """Put the key where a recorded request stands for it."""
        key = self.issued
        for name, value in (
            ("{key}", key.combined),
            ("{key_quoted}", quote(key.combined, safe="")),
            ("{id}", key.key.id),
            ("{secret}", key.secret),
        ):
            text = text.replace(name, value)
        return text


@pytest.fixture(scope="module", params=["app", pytest.param("gunicorn", marks=pytest.mark.real_server)])
def wire(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """The app as it is, and `invites-api serve` with its two workers."""
    folder = tmp_path_factory.mktemp(f"wire-{request.param}")
    store = SqliteStore(folder / "invites.db")
    issued = ApiKeys(store).create("example.com", name="My test key")
    if request.param == "app":
        app = App(Settings(database="memory:"), key_store=store, invite_store=store)
        yield Wire(partial(ask, app), store, issued)
    else:
        with make_serve(folder, folder / "invites.db", workers=2) as server:
            yield Wire(partial(ask_server, server.port), store, issued)
    store.close()


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_every_recorded_request_is_answered_as_expected(wire: Wire, case: dict[str, Any]) -> None:
    """Every request that Prosody was sent gets the answer written down for this service, and creates or does not."""
    request, expect = case["request"], case["expect"]
    headers = {name: wire.fill(value) for name, value in request["headers"].items()}
    invites_before = count_invites(wire.store)

    answer = wire.send(wire.fill(request["target"]), method=request["method"], headers=headers)

    assert answer.status == expect["status"], answer
    for name, value in expect["headers"].items():
        assert_header(answer, name, value)
    if "location" in expect:
        pattern = re.escape(expect["location"]).replace(re.escape("{token}"), "(?P<token>.+)")
        found = re.fullmatch(pattern, answer["Location"])
        assert found is not None, answer
        assert is_token(found["token"])
        invite = wire.store.find_invite(found["token"])
        assert invite is not None
        assert (invite.host, invite.source) == ("example.com", f"api/token/{wire.issued.key.id}")
        assert count_invites(wire.store) == invites_before + 1
    else:
        assert answer.get("Location") is None
        assert count_invites(wire.store) == invites_before
    if request["method"] == "HEAD" or answer.status in (201, 303):
        assert answer.body == b""


def assert_header(answer: Answer, name: str, expected: str) -> None:
    """Compare as the recording asks for: ``…`` stands for more, and of a list the order is free."""
    if expected.endswith("…"):
        assert answer[name].startswith(expected.removesuffix("…"))
    else:
        assert split_list(answer[name]) == split_list(expected)


def split_list(value: str) -> list[str]:
    """Return the members of a list in a header, sorted."""
    return sorted(member.strip() for member in value.split(","))


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_a_difference_from_prosody_says_why(case: dict[str, Any]) -> None:
    """Where this service answers with another status than Prosody, or leaves out a header of its, a reason is given."""
    prosody, expect = case["prosody"], case["expect"]
    differs = prosody["status"] != expect["status"]
    differs |= any(prosody["headers"].get(name) != "*" for name in expect["headers"] if name.endswith("Allow-Origin"))
    assert differs == ("differs_because" in expect)
    assert len(expect.get("differs_because", "A reason.")) > 5


def test_every_recorded_request_has_a_name_of_its_own() -> None:
    """No recorded request hides another."""
    assert len({case["name"] for case in CASES}) == len(CASES) >= 34
