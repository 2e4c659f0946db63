"""The OpenAPI description: the same as the routes, true of every answer, and no request made after it makes a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from invites_core import errors as core
from invites_wsgi import App
from invites_wsgi.errors import ERRORS, name_problem_type
from invites_wsgi.openapi import build_openapi
from tests.proofs.api_fuzz import OPERATIONS, run_fuzz
from tests.wsgi.callers import Caller, make_caller
from tests.wsgi.conftest import MakeService
from tests.wsgi.support import Answer, Service

METHODS = {"get", "post", "put", "delete", "patch", "head", "options", "trace"}
DOCUMENT = build_openapi()


@pytest.fixture
def caller(service: Service) -> Caller:
    """A program whose key may do anything."""
    return make_caller(service)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return path, method and description of each operation."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS & set(item):
            yield path, method, item[method]


def test_the_description_is_served(service: Service) -> None:
    """It is JSON, the same without a key and with one."""
    answer = service.ask("/invites_api/openapi.json")
    assert (answer.status, answer["Content-Type"], answer.json()) == (200, "application/json", DOCUMENT)
    assert service.create("/invites_api/openapi.json").json() == DOCUMENT
    head = service.ask("/invites_api/openapi.json", method="HEAD")
    assert (head.status, head["Content-Length"]) == (200, str(len(answer.body)))


def test_the_description_names_the_path_that_is_set(make_service: MakeService) -> None:
    """With another path in the settings the description has it too."""
    service = make_service(path="/api/v1")
    paths = service.ask("/api/v1/openapi.json").json()["paths"]
    assert "/api/v1" in paths
    assert all(path == "/api/v1" or path.startswith("/api/v1/") for path in paths)


def test_routes_and_description_are_the_same(service: Service) -> None:
    """Each route and method of the API is described, and what is described is there; HEAD is what GET is."""
    assert isinstance(service.app, App)
    served = {
        (path.replace("<token>", "{token}"), method.lower())
        for path, handlers in service.app._resources.items()
        if path.startswith("/invites_api")
        for method in handlers
        if method != "HEAD"
    }
    assert {(path, method) for path, method, _ in operations()} == served
    assert {(method.upper(), path) for path, method, _ in operations()} == set(OPERATIONS)


def test_each_operation_has_a_name_and_a_sentence() -> None:
    """Names of operations are unique, for the programs that are made from them."""
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] for _, _, operation in operations())


def test_every_problem_type_is_described() -> None:
    """The types are those of the library's errors, and the plain one; each error that leaves the library has one."""
    described = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
    assert sorted(described) == sorted(["about:blank", *map(name_problem_type, ERRORS)])
    inside = {"InvitesError", "KeyExists", "InviteExists"}
    assert {error.__name__ for error in ERRORS} == set(core.__all__) - inside


def references(node: Any) -> Iterator[str]:
    """Return every reference in a document."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_schema_is_valid_and_used() -> None:
    """Each schema is one of JSON Schema 2020-12, every reference leads to one, and none is left over."""
    schemas = DOCUMENT["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert {f"#/components/schemas/{name}" for name in schemas} == set(references(DOCUMENT))


def validate(name: str, content: Any) -> None:
    """Check a document against a schema, which may have no field that the schema does not name."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    checker = jsonschema.FormatChecker()
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(content)
    assert set(content) <= set(DOCUMENT["components"]["schemas"][name]["properties"]) | {"field", "scope"}


FORMS: list[Any] = [
    pytest.param({}, id="plain"),
    pytest.param({"username": "alice", "note": "ä", "groups": ["staff"], "roles": ["prosody:admin"]}, id="full"),
    pytest.param({"expires_in": None, "max_uses": None}, id="unbounded"),
    pytest.param({"kind": "reset", "username": "alice", "expires_in": "1h"}, id="reset"),
    pytest.param({"kind": "roster", "username": "alice", "registration": True}, id="roster"),
]


@pytest.mark.parametrize("fields", FORMS)
def test_answers_are_as_described(caller: Caller, fields: dict[str, Any]) -> None:
    """Whatever an invite is like, each answer about it has the form that is described."""
    validate("CreationRequest", fields)
    made = caller.make(**fields)
    validate("Invite", made)
    path = f"/invites/{made['token']}"
    redeemed = caller.send("POST", f"{path}/redeem", {"redeemer": fields.get("username")}).json()
    validate("Redemption", redeemed)
    validate("InviteDetails", caller.get(made["token"]))
    released = caller.send("POST", f"{path}/release", {"redemption_id": redeemed["redemption_id"]}).json()
    validate("Redemption", released)
    caller.send("DELETE", path)
    validate("InviteDetails", caller.get(made["token"]))
    validate("InvitePage", caller.send("GET", "/invites").json())
    validate("Key", caller.send("GET", "/key").json())
    if "username" not in fields:
        validate("Invites", caller.send("POST", "", {**fields, "count": 2}).json())


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        pytest.param("POST", "", {"count": 0}, id="invalid-request"),
        pytest.param("GET", f"/invites/{'A' * 24}", None, id="invite-unknown"),
        pytest.param("PUT", "", None, id="method"),
        pytest.param("GET", "/nothing", None, id="nothing-here"),
    ],
)
def test_problems_are_as_described(caller: Caller, method: str, path: str, content: Any) -> None:
    """A refusal has the form that is described."""
    answer: Answer = caller.send(method, path) if content is None else caller.send(method, path, content)
    assert answer.status >= 400
    validate("Problem", answer.json())


def test_generated_requests_make_no_5xx() -> None:
    """Requests generated from the description, right ones and wrong ones, with keys of several scopes, make no 5xx."""
    outcome = run_fuzz(examples=12, seed=17)
    assert outcome.failures == [], json.dumps(outcome.failures[:3], indent=2)
    assert outcome.requests >= 6 * len(OPERATIONS)
    assert {200, 400, 401, 403, 404} <= set(outcome.statuses)
