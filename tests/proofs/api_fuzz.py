"""Requests that Schemathesis makes from the OpenAPI description, right and wrong: none is answered with a 5xx."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Err
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from invites_core import ApiKeys, Invites, KeyPolicy
from invites_core.keys import NEVER, SCOPES, Quota
from invites_core.stores.memory import MemoryStore
from invites_core.testing.hashing import cheap_hasher
from invites_wsgi import App, Settings
from invites_wsgi.openapi import build_openapi

HOST: Final = "example.com"
TOKENS_KEPT: Final = 20

OPERATIONS: Final = [
    (method.upper(), path)
    for path, item in build_openapi()["paths"].items()
    for method in item
    if method in ("get", "post", "delete")
]

CHECKS_WITHOUT_BODY: Final = [not_a_server_error, response_headers_conformance, status_code_conformance]
CHECKS: Final = [*CHECKS_WITHOUT_BODY, content_type_conformance, response_schema_conformance]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What generated requests have shown.

    Attributes:
        requests: How many were sent.
        statuses: How often each status was answered.
        failures: Requests that were answered with a 5xx or otherwise than described, each as a few words.
        seconds: How long it took.
    """

    requests: int
    statuses: dict[int, int]
    failures: list[str]
    seconds: float


def make_policies() -> list[KeyPolicy]:
    """Return policies that let different requests through."""
    everything = KeyPolicy(
        scopes=SCOPES,
        kinds=frozenset({"register", "roster", "reset"}),
        allow_username=True,
        max_expiry=NEVER,
        max_uses=None,
        all_invites=True,
    )
    return [
        everything,
        KeyPolicy(),
        replace(everything, scopes=frozenset({"read"})),
        replace(everything, scopes=frozenset({"redeem", "revoke"}), header_only=True),
        replace(everything, quota=Quota(5, timedelta(seconds=1))),
    ]


class Fuzz:
    """An app over a store in memory, keys for it, and what it has answered."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.store = MemoryStore()
        hasher = cheap_hasher()
        self.app = App(Settings(database="memory:"), key_store=self.store, invite_store=self.store, hasher=hasher)
        keys = ApiKeys(self.store, hasher=hasher)
        self._invites = Invites(self.store)
        self._bearers = [f"Bearer {keys.create(HOST, policy=policy).combined}" for policy in make_policies()]
        self._tokens: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def choose_token(self) -> str:
        """Return the token of an invite, which may be over by now."""
        if len(self._tokens) < TOKENS_KEPT or self._random.random() < 0.3:
            made = self._invites.create_for(HOST, source="fuzz", max_uses=self._random.choice([1, 2, None]))
            self._tokens = [*self._tokens, made.token][-TOKENS_KEPT:]
        return self._random.choice(self._tokens)

    def send(self, case: Any) -> None:
        """Send a generated request, mostly with a key and, where the path takes a token, often a real one."""
        if "token" in (case.path_parameters or {}) and self._random.random() < 0.7:
            case.path_parameters["token"] = self.choose_token()
        headers = dict(case.headers or {})
        if self._random.random() < 0.95:
            headers["Authorization"] = self._random.choice(self._bearers)
        # Else the random `key` of the security scheme stands in for a stranger's.
        elif isinstance(case.query, dict):
            case.query.pop("key", None)
        if self._random.random() < 0.5:
            headers["Accept"] = "application/json"
        response = case.call(headers=headers)
        self.statuses[response.status_code] += 1
        try:
            # A 201 without a body cannot be described beside one with JSON.
            case.validate_response(response, checks=CHECKS if response.content else CHECKS_WITHOUT_BODY)
        except (Failure, FailureGroup) as failure:
            self.failures.append(f"{case.method} {case.path} -> {response.status_code}: {failure} {case.body!r:.200}")


def run_fuzz(*, examples: int, seed: int | None = None) -> Outcome:
    """Send generated requests to the app, in this process.

    Args:
        examples: How many requests for each operation, half of them right and half of them wrong.
        seed: Chooses the requests; None: others each time.
    """
    started = time.monotonic()
    fuzz = Fuzz(random.randrange(2**32) if seed is None else seed)
    schema = schemathesis.openapi.from_wsgi("/invites_api/openapi.json", fuzz.app)
    for found in schema.get_all_operations():
        if isinstance(found, Err):
            raise found.err()
        for mode in GenerationMode:
            _run(fuzz, found.ok(), mode, -(-examples // 2), seed)
    return Outcome(
        requests=fuzz.statuses.total(),
        statuses=dict(sorted(fuzz.statuses.items())),
        failures=fuzz.failures,
        seconds=time.monotonic() - started,
    )


def _run(fuzz: Fuzz, operation: Any, mode: GenerationMode, examples: int, seed: int | None) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is not None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        fuzz.send(case)

    try:
        send()
    except Unsatisfiable:
        # There is no wrong request to an operation without parameters.
        return


def main() -> int:
    """Send generated requests as a command."""
    parser = argparse.ArgumentParser(prog="fuzz-api", description=__doc__)
    parser.add_argument("--examples", type=int, default=1250, help="for each of the operations")
    parser.add_argument("--seed", type=int, help="chooses the requests; others each time without it")
    options = parser.parse_args()
    outcome = run_fuzz(examples=options.examples, seed=options.seed)
    for failure in outcome.failures[:20]:
        print(failure)
    print(f"{outcome.requests} requests in {outcome.seconds:.0f} s, by status: {outcome.statuses}")
    failed = bool(outcome.failures)
    print("NOT every answer was as described" if failed else "no 5xx, and every answer was as described")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
