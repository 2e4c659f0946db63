"""Callers of the API that go on while its processes are killed, and write down what they were told."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from invites_core import IssuedKey
from tests.proofs.kill_journal import Creation, Journal, Revocation, Use

PATIENCE: Final = 60.0
"""Seconds after which a service that was repaired ought to have answered."""

REQUEST_SECONDS: Final = 30.0
POOL_SIZE: Final = 48
"""How many of the newest invites all callers redeem and revoke: few, so that several want the same one."""

GIVES_UP: Final = 0.1
"""The share of lost answers after which a caller does not repeat, although it could."""

LEAVES: Final = 0.05
"""The share of creations whose answer a caller does not wait for. It asks again while the first may still be under way.

Only creations: a redemption that was refused could win afterwards, by its first attempt, once another is released.
"""

HANGS_UP: Final = 0.05
"""The share of answers after which a caller connects anew: on connections that last, one worker may answer them all."""

AGAIN: Final = 503

Answered = tuple[int, Any]
"""A status and what the document says."""


@dataclass(slots=True)
class Scene:
    """What all callers of one round share.

    Attributes:
        name: A text in the identities of the round, which no other round has.
        port: Where the API is.
        key: The key that most is done with.
        quota_keys: Keys with a quota.
        is_up: Set while the server is there; a caller waits for it before it asks anything.
        is_ending: Set when callers finish what they are at and leave.
        pool: The newest invites.
        failure: Why a caller has ended before its time.
    """

    name: str
    port: int
    key: IssuedKey
    quota_keys: list[IssuedKey]
    is_up: threading.Event = field(default_factory=threading.Event)
    is_ending: threading.Event = field(default_factory=threading.Event)
    pool: deque[str] = field(default_factory=lambda: deque(maxlen=POOL_SIZE))
    failure: Exception | None = None

    @property
    def issued(self) -> list[IssuedKey]:
        """Every key that callers use."""
        return [self.key, *self.quota_keys]


class Caller(threading.Thread):
    """One connection that creates, redeems, releases and revokes as fast as it is answered.

    Attributes:
        journal: What it was told; for others once the thread has ended.
    """

    def __init__(self, scene: Scene, number: int, seed: int) -> None:
        super().__init__(name=f"caller-{number}", daemon=True)
        self.journal = Journal()
        self._scene = scene
        self._random = random.Random(seed)
        self._connection = http.client.HTTPConnection("127.0.0.1", scene.port, timeout=REQUEST_SECONDS)
        self._count = 0
        self._held: list[Use] = []
        self._made: list[tuple[Creation, IssuedKey, dict[str, Any]]] = []

    def run(self) -> None:
        """Call until the round ends."""
        work = [self._create_bare, self._create, self._create_several, self._create_in_quota]
        work += [self._redeem, self._release, self._revoke, self._repeat]
        try:
            with contextlib.closing(self._connection):
                while not self._scene.is_ending.is_set():
                    [do] = self._random.choices(work, [8, 18, 4, 10, 40, 8, 4, 8])
                    do()
        except Exception as error:
            self._scene.failure = error

    def _make_creation(self, issued: IssuedKey, count: int = 1) -> Creation:
        return Creation(issued.key.source, self._make_name(), count, repeatable=self._random.random() < 0.6)

    def _create_bare(self) -> None:
        """As a bookmark does: no body and no identity, so whatever becomes of it is never repeated."""
        self._run_creation(Creation(self._scene.key.key.source, None, 1), self._scene.key, {}, method="GET")

    def _create(self) -> None:
        max_uses = self._random.choice([1, 1, 1, 2, 5])
        self._run_creation(self._make_creation(self._scene.key), self._scene.key, {"max_uses": max_uses})

    def _create_several(self) -> None:
        count = self._random.randint(2, 5)
        self._run_creation(self._make_creation(self._scene.key, count), self._scene.key, {"count": count})

    def _create_in_quota(self) -> None:
        issued = self._random.choice(self._scene.quota_keys)
        count = self._random.choice([1, 1, 3])
        self._run_creation(self._make_creation(issued, count), issued, {"count": count})

    def _run_creation(
        self, creation: Creation, issued: IssuedKey, body: dict[str, Any], *, method: str = "POST"
    ) -> None:
        self.journal.creations.append(creation)
        answered = self._send_creation(creation, issued, body, method)
        if answered is None:
            return
        status, document = answered
        if status == 201:
            creation.answer, creation.tokens = "acknowledged", _read_tokens(document)
            if creation.repeatable:
                self._made.append((creation, issued, body))
            if creation.source == self._scene.key.key.source:
                self._scene.pool.extend(creation.tokens)
        elif status == 429 and issued is not self._scene.key:
            creation.answer = "refused"
            self.journal.note_spent(creation.source, creation.count)
        else:
            self._note_unexpected("creation", answered)

    def _send_creation(
        self, creation: Creation, issued: IssuedKey, body: dict[str, Any], method: str
    ) -> Answered | None:
        headers = {"Idempotency-Key": creation.note or ""} if creation.repeatable else {}
        content = None if method == "GET" else {**body, "note": creation.note}
        return self._ask(method, "", content, issued=issued, headers=headers, repeatable=creation.repeatable)

    def _redeem(self) -> None:
        token = self._choose_token()
        if token is None:
            return
        use = Use(token, self._make_name(), time.monotonic())
        self.journal.uses.append(use)
        answered = self._send_use(use)
        if answered is None:
            return
        if answered[0] == 200:
            use.answer = "acknowledged"
            self._held.append(use)
        elif answered[0] == 410:
            use.answer = "refused"
        else:
            self._note_unexpected("redemption", answered)

    def _send_use(self, use: Use) -> Answered | None:
        body = {"redeemer": use.redemption_id, "redemption_id": use.redemption_id}
        return self._ask("POST", f"/invites/{use.token}/redeem", body)

    def _release(self) -> None:
        held = [use for use in self._held[-POOL_SIZE:] if use.release is None]
        if not held:
            return
        use = self._random.choice(held)
        use.release = "unknown"
        answered = self._ask("POST", f"/invites/{use.token}/release", {"redemption_id": use.redemption_id})
        if answered is not None and answered[0] == 200:
            use.release = "acknowledged"
        elif answered is not None:
            self._note_unexpected("release", answered)

    def _revoke(self) -> None:
        token = self._choose_token()
        if token is None:
            return
        revocation = Revocation(token)
        self.journal.revocations.append(revocation)
        answered = self._ask("DELETE", f"/invites/{token}", None)
        if answered is None:
            return
        status, document = answered
        # Revoked by an attempt whose answer was lost, or by another caller: it is revoked all the same.
        if status == 204 or (status == 410 and document.get("type") == "invite-revoked"):
            revocation.answer, revocation.ended_at = "acknowledged", time.monotonic()
        elif status == 410:
            revocation.answer = "refused"
        else:
            self._note_unexpected("revocation", answered)

    def _repeat(self) -> None:
        """Send something again that was acknowledged before: it is the same success, and nothing is done twice."""
        if self._made and self._random.random() < 0.5:
            self._repeat_creation(*self._random.choice(self._made))
        elif self._held:
            self._repeat_use(self._random.choice(self._held))

    def _repeat_creation(self, creation: Creation, issued: IssuedKey, body: dict[str, Any]) -> None:
        answered = self._send_creation(creation, issued, body, "POST")
        if answered is not None and (answered[0] != 201 or _read_tokens(answered[1]) != creation.tokens):
            self._note_unexpected("repeated creation, or other invites than before", answered)

    def _repeat_use(self, use: Use) -> None:
        answered = self._send_use(use)
        if answered is None or use.release == "unknown":
            return
        if answered[0] != (200 if use.release is None else 409):
            self._note_unexpected("repeated redemption", answered)

    def _ask(
        self,
        method: str,
        path: str,
        content: dict[str, Any] | None,
        *,
        issued: IssuedKey | None = None,
        headers: dict[str, str] | None = None,
        repeatable: bool = True,
    ) -> Answered | None:
        """Send a request, again where its answer was lost; None: what became of it is not known."""
        bearer = (issued or self._scene.key).combined
        fields = {"Authorization": f"Bearer {bearer}", "Accept": "application/json", **(headers or {})}
        body = None if content is None else json.dumps(content)
        if body is not None:
            fields["Content-Type"] = "application/json"
        deadline = time.monotonic() + PATIENCE
        leaves = not path and self._random.random() < LEAVES
        while True:
            answered = self._send(method, f"/invites_api{path}", body, fields, leaves=leaves)
            if answered is not None and answered[0] != AGAIN:
                return answered
            self.journal.left += leaves
            self.journal.lost += answered is None and not leaves
            leaves = False
            if not repeatable or self._random.random() < GIVES_UP:
                return None
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} was not answered within {PATIENCE:g} s")
            self.journal.repeats += 1

    def _send(
        self, method: str, path: str, body: str | None, headers: dict[str, str], *, leaves: bool
    ) -> Answered | None:
        if not self._scene.is_up.wait(PATIENCE):
            raise RuntimeError("the server did not come back")
        try:
            self._connection.request(method, path, body, headers)
            if leaves:
                self._connection.close()
                return None
            response = self._connection.getresponse()
            content = response.read()
            if self._random.random() < HANGS_UP:
                self._connection.close()
            return response.status, json.loads(content) if content else {}
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return None

    def _choose_token(self) -> str | None:
        with contextlib.suppress(IndexError):
            return self._scene.pool[self._random.randrange(POOL_SIZE)]
        return None

    def _make_name(self) -> str:
        self._count += 1
        return f"{self._scene.name}-{self.name}-{self._count}"

    def _note_unexpected(self, kind: str, answered: Answered) -> None:
        self.journal.unexpected[f"{kind}: {answered[0]} {answered[1].get('type', '')}"] += 1


def _read_tokens(document: Any) -> tuple[str, ...]:
    return tuple(invite["token"] for invite in document.get("invites", [document]))
