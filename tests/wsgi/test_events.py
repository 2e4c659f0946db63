"""The lines of events: one for each change, with the request it came of; none for what the request's line says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from invites_core import Invites
from invites_wsgi.events import log_event
from tests.wsgi.callers import EVERYTHING
from tests.wsgi.conftest import MakeService
from tests.wsgi.support import LogBook, Service


def list_events(log: LogBook) -> list[dict[str, Any]]:
    """Return the entries on events alone, without what every line has."""
    every = {"time", "level", "pid"}
    return [{k: v for k, v in entry.items() if k not in every} for entry in log.entries if "ms" not in entry]


def make_full(make_service: MakeService) -> Service:
    service = make_service()
    service.keys.update("example.com", service.issued.key.id, policy=EVERYTHING)
    return service


def test_each_change_over_http_is_a_line(make_service: MakeService, log: LogBook) -> None:
    """Making, using, giving back and revoking are lines with the ids of key and request, before the request's own."""
    service = make_full(make_service)
    key_id = service.issued.key.id
    header = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    made = service.ask("/invites_api", method="POST", headers=header, body=b'{"count": 3}')
    token = json.loads(made.body)["invites"][0]["token"]
    steps = [
        ("POST", f"/invites_api/invites/{token}/redeem", b'{"redemption_id": "one", "redeemer": "alice"}'),
        ("POST", f"/invites_api/invites/{token}/release", b'{"redemption_id": "one"}'),
        ("DELETE", f"/invites_api/invites/{token}", b""),
    ]
    answers = [made, *(service.ask(target, method=method, headers=header, body=body) for method, target, body in steps)]
    ids = [answer["X-Request-Id"] for answer in answers]
    common = {"key": key_id, "host": "example.com", "kind": "register"}
    source = f"api/token/{key_id}"
    assert list_events(log) == [
        {"message": "invite.created", **common, "count": 3, "source": source, "request_id": ids[0]},
        {"message": "invite.redeemed", **common, "count": 1, "request_id": ids[1]},
        {"message": "invite.released", **common, "count": 1, "request_id": ids[2]},
        {"message": "invite.revoked", **common, "count": 1, "source": source, "request_id": ids[3]},
    ]
    assert [entry.get("request_id") for entry in log.entries] == [one for one in ids for _ in range(2)]
    assert [entry["level"] for entry in log.entries] == ["info"] * 8
    for text in (log.text, log.json):
        assert token not in text
        assert "alice" not in text


def test_a_line_as_text(service: Service, log: LogBook) -> None:
    """In the text format the facts follow the name of the event."""
    answer = service.ask(f"/invites_api?key={service.key}")
    key_id = service.issued.key.id
    assert log.text.splitlines()[0].partition("] ")[2] == (
        f"invite.created key={key_id} host=example.com kind=register count=1 source=api/token/{key_id}"
        f" request_id={answer['X-Request-Id']}"
    )


def test_a_refusal_is_told_once(make_service: MakeService, log: LogBook) -> None:
    """A refused key is one line, the request's own, with key and reason: also for scope, policy, quota."""
    service = make_service()
    service.ask("/invites_api?key=x")
    service.ask(f"/invites_api?key={service.issued.key.id}/AAAA")
    service.ask(f"/invites_api/invites?key={service.key}")
    header = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    service.ask("/invites_api", method="POST", headers=header, body=b'{"max_uses": 2}')
    assert [entry["reason"] for entry in log.entries] == ["malformed", "wrong secret", "ScopeMissing", "PolicyRefused"]
    assert list_events(log) == []


def test_what_is_not_asked_for_over_http_has_no_request(service: Service, log: LogBook) -> None:
    """A purge beside the requests is a line without a key and a request, also in a thread that has answered some."""
    service.create()
    service.clock.advance(timedelta(days=30))
    invites = Invites(service.store, clock=service.clock, on_event=log_event)
    invites.purge(older_than=timedelta(days=1))
    assert list_events(log)[-1] == {"message": "invite.purged", "count": 1}


def test_a_source_that_may_be_a_secret_is_cut(service: Service, log: LogBook) -> None:
    """Who made an invite is a text of theirs: what could be a credential in it is not written."""
    invites = Invites(service.store, clock=service.clock, on_event=log_event)
    secret = service.issued.secret
    invites.create_for("example.com", source=f"a page?key={secret} {secret}")
    assert secret not in log.text + log.json
    assert list_events(log)[-1]["source"] == "a page?[…] […]"
