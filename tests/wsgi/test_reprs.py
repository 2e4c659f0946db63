"""What the objects of this project show of themselves, to a debugger or to what keeps the variables of a traceback."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

import pytest
from werkzeug.wrappers import Request

import invites_core
import invites_wsgi
from invites_core import ApiKeys, Invites
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from tests.wsgi.callers import EVERYTHING, Caller
from tests.wsgi.support import Service
from tests.wsgi.test_canary import Canaries

SECRETS: Final = frozenset(
    {
        "secret",
        "secret_hash",
        "tag",
        "token",
        "tokens",
        "landing_page",
        "conninfo",
        "database",
        "request",
        "idempotency_key",
        "next_cursor",
        "password",
    }
)
"""Names of fields of which no representation of a record may show the value."""

HARMLESS: Final = {"HostSettings.landing_page"}
"""A template, in which the token is yet to be put."""


def list_modules(package: ModuleType) -> Iterator[ModuleType]:
    """Import all modules of a package."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def list_records() -> list[type]:
    """Return every dataclass of both packages."""
    return sorted(
        {
            value
            for package in (invites_core, invites_wsgi)
            for module in list_modules(package)
            for value in vars(module).values()
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
        },
        key=lambda found: (found.__module__, found.__name__),
    )


def test_no_record_shows_a_field_that_holds_a_secret() -> None:
    """Every dataclass of both packages, those to come too, leaves such a field out of its representation."""
    records = list_records()
    fields = [(record, field) for record in records for field in dataclasses.fields(record) if field.name in SECRETS]
    assert len(records) > 30
    assert len(fields) > 10
    assert {f"{record.__name__}.{field.name}" for record, field in fields if field.repr} == HARMLESS


class WatchedStore(MemoryStore):
    """Keeps how everything looks that goes in and comes out of it, but the plain texts that are secrets themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            result = found(*arguments, **named)
            for value in (*arguments, *named.values(), result):
                self.shown += [f"{type(each).__name__}: {each!r} {each}" for each in _list_objects(value)]
            return result

        return call


def _list_objects(value: Any) -> list[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        return [each for inner in value for each in _list_objects(inner)]
    return [] if isinstance(value, str | bytes) else [value]


def test_nothing_that_passes_through_the_library_shows_a_secret() -> None:
    """Records, results, events, services and stores show no secret, hash, tag or token of what they are about."""
    store = WatchedStore()
    events: list[object] = []
    keys, invites = ApiKeys(store, on_event=events.append), Invites(store, on_event=events.append)
    issued = keys.create("example.com", policy=EVERYTHING)
    stored = store.find_key(issued.key.id)
    assert stored is not None
    seen: list[object] = [issued, keys, invites, store, events, Settings(database="postgresql://u:hunter2@h/d")]
    made = invites.create(issued.key, max_uses=3, idempotency_key="idempotency-canary")
    more = invites.create_many(issued.key, count=3)
    seen += [made, more, keys.verify(issued.combined), keys.list(), keys.find(issued.key.id)]
    redeemed = invites.redeem(made.token, redeemer="alice")
    seen += [redeemed, invites.find(made.token), invites.list("example.com", limit=2)]
    seen += store.list_redemptions(made.token)
    invites.release(made.token, redemption_id=redeemed.redemption_id)
    invites.revoke(more[0].token, by="admin")
    rotated = keys.rotate("example.com", issued.key.id)
    seen += [rotated, keys.find(issued.key.id)]
    keys.delete("example.com", issued.key.id)

    names = {line.partition(":")[0] for line in store.shown}
    assert {"ApiKey", "Invite", "Grant", "GrantTaken", "RedeemResult", "InvitePage"} <= names
    assert {event.name for event in events} >= {"key.created", "invite.redeemed", "key.deleted"}  # type: ignore[attr-defined]
    text = "\n".join([*store.shown, *(f"{each!r} {each}" for each in seen)])
    tokens = [made.token, *(invite.token for invite in more)]
    Canaries(issued, made.token, tokens).assert_not_in(text)
    Canaries(rotated, made.token).assert_not_in(text)
    for canary in (stored.secret_hash, repr(stored.tag)[2:-1], "idempotency-canary", "hunter2"):
        assert canary not in text


@pytest.mark.parametrize("how", ["query", "header", "body", "page"])
def test_no_variable_of_ours_shows_a_secret_in_a_traceback(
    service: Service, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Of all variables of all frames of a failure those of our types show nothing, and neither does the request.

    A plain text shows itself, and so does the environment that the server hands over; nothing can be done about these.
    """
    canaries = Canaries(service.issued, service.create().token)
    caught: list[tuple[str, object]] = []

    def look_and_fail(*arguments: object, **named: object) -> None:
        for frame, _ in traceback.walk_stack(None):
            module = frame.f_globals["__name__"]
            if module.split(".")[0] in ("invites_core", "invites_wsgi"):
                caught.extend((f"{module}: {name}", value) for name, value in frame.f_locals.items())
        raise RuntimeError("a failure in the middle")

    monkeypatch.setattr(service.store, "find_invite" if how == "page" else "find_key", look_and_fail)
    caller = Caller(service, service.issued)
    if how == "page":
        answer = service.ask(f"/invite?{canaries.token}")
    elif how == "query":
        answer = service.ask(f"/invites_api/invites/{canaries.token}?key={service.key}")
    elif how == "header":
        answer = service.create(headers={"Idempotency-Key": canaries.token})
    else:
        answer = caller.send("POST", f"/invites/{canaries.token}/redeem", {"redeemer": "alice"})
    assert answer.status == 500
    ours = [(name, value) for name, value in caught if is_ours(value)]
    assert {type(value).__name__ for _, value in ours} >= {"App", "Exchange", "QuietRequest"}
    canaries.assert_not_in("\n".join(f"{name} = {value!r} {value}" for name, value in ours))


def is_ours(value: object) -> bool:
    """Whether a value is of a type of ours, or a request."""
    return type(value).__module__.split(".")[0] in ("invites_core", "invites_wsgi") or isinstance(value, Request)


def test_stores_and_apps_show_no_url(database: Any) -> None:
    """A store, and an app with settings, show nothing of what they were opened with."""
    store = SqliteStore(database)
    app = App(Settings(database="postgresql://u:hunter2@h/d"), key_store=store, invite_store=store)
    assert "hunter2" not in f"{store!r} {app!r} {app}"
    store.close()
