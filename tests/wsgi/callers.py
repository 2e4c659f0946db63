"""Programs that call the API of a service, each with a key of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from invites_core import Invites, IssuedKey, KeyPolicy
from invites_core.keys import NEVER, SCOPES
from tests.wsgi.support import Answer, Service

__all__ = ["EVERYTHING", "UNSET", "Caller", "make_caller", "refused"]

EVERYTHING: Final = KeyPolicy(
    scopes=SCOPES,
    kinds=frozenset({"register", "roster", "reset"}),
    groups=frozenset({"staff", "friends"}),
    roles=frozenset({"prosody:member", "prosody:admin"}),
    allow_username=True,
    max_expiry=NEVER,
    max_uses=None,
)
"""A policy that grants all there is, within the key's own invites."""

UNSET: Final = object()


@dataclass
class Caller:
    """A program with a key; what it asks carries the key in the header."""

    service: Service
    issued: IssuedKey

    @property
    def bearer(self) -> dict[str, str]:
        """The header that carries the key."""
        return {"Authorization": f"Bearer {self.issued.combined}"}

    @property
    def source(self) -> str:
        """The source of the invites of this key."""
        return self.issued.key.source

    def send(
        self, method: str, path: str = "", content: Any = UNSET, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request below ``/invites_api``, with a JSON body unless there is nothing to say."""
        sent = {**self.bearer, **(headers or {})}
        if content is UNSET:
            return self.service.ask(f"/invites_api{path}", method=method, headers=sent)
        return self.send_bytes(method, path, json.dumps(content).encode(), headers=sent)

    def send_bytes(self, method: str, path: str, body: bytes, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request with a body as it is, declared as JSON unless the headers say otherwise."""
        sent = {"Content-Type": "application/json", **self.bearer, **(headers or {})}
        return self.service.ask(f"/invites_api{path}", method=method, headers=sent, body=body)

    def make(self, **fields: Any) -> dict[str, Any]:
        """Make an invite over HTTP, and return it as JSON."""
        answer = self.send("POST", "", fields, headers={"Accept": "application/json"})
        assert answer.status == 201, answer
        made: dict[str, Any] = answer.json()
        return made

    def get(self, token: str) -> dict[str, Any]:
        """Return an invite with its history."""
        answer = self.send("GET", f"/invites/{token}")
        assert answer.status == 200, answer
        shown: dict[str, Any] = answer.json()
        return shown

    @property
    def invites(self) -> Invites:
        """The invites of the service, by the library."""
        return Invites(self.service.store, clock=self.service.clock)


def make_caller(service: Service, policy: KeyPolicy = EVERYTHING, *, host: str = "example.com") -> Caller:
    """Make a key with a policy, and return the program that has it."""
    return Caller(service, service.keys.create(host, policy=policy))


def refused(answer: Answer) -> tuple[int, str, str | None]:
    """Return the status and type of a refusal, and the field that it names."""
    assert answer["Content-Type"] == "application/problem+json", answer
    content = answer.json()
    assert content["status"] == answer.status
    return answer.status, content["type"], content.get("field")
