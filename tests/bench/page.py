"""The invite page beside Prosody's mod_invites_page: each shows many invites of its own, in turn."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.load import Load
from tests.bench.peers import HOST, Peer, Service, Settings, find_missing_invites_api, new_sqlite, run_invites_api
from tests.bench.plans import Plan
from tests.servers import Prosody, Server

__all__ = ["make_page_plan"]

INVITES = 1_000
"""More than either keeps anything of, so that each page is made anew."""


def make_page_plan() -> Plan:
    """Return the plan that measures pages served, on SQLite."""
    return Plan(
        (
            Peer("page", "invites-api, its page", find_missing_invites_api, _run_service, is_python=True),
            Peer("prosody-page", "Prosody, mod_invites_page", Prosody.find_missing, _run_prosody),
        ),
        {"x Prosody": "prosody-page"},
        ("x Prosody: times the rate of Prosody's page.",),
        (f"The pages are those of {INVITES} pending invites on SQLite, in turn.",),
    )


@contextlib.contextmanager
def _run_service(folder: Path, settings: Settings) -> Iterator[Service]:
    with run_invites_api(new_sqlite, 1, folder, settings) as service:
        yield _showing(service, "/invite")


@contextlib.contextmanager
def _run_prosody(folder: Path, settings: Settings) -> Iterator[Service]:
    del settings  # It is one process with one thread.
    prosody = Prosody(folder, "sql", extra="invites_page_external = false; invites_page = nil")
    key = prosody.create_key(HOST, "bench")
    with prosody:
        service = Service((prosody,), (Load("create", f"/invites_api?key={key}", 201),))
        yield _showing(service, "/invites_page")


def _showing(service: Service, path: str) -> Service:
    [server] = service.servers
    create = next(load for load in service.loads if load.name == "create")
    tokens = [_create(server, create) for _ in range(INVITES)]
    load = Load("page", f"{path}?{tokens[0]}", 200, tuple(f"{path}?{token}" for token in tokens))
    return replace(service, loads=(load,))


def _create(server: Server, load: Load) -> str:
    request = urllib.request.Request(server.url + load.target, headers={"Host": HOST})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(urlsplit(answer.headers["Location"]).query)
