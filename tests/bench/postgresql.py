"""The peers on PostgreSQL: nodes of the service, and Prosody, each on an empty database of one server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg

from tests.bench.peers import (
    HOST,
    OpenDatabase,
    Peer,
    RunPeer,
    Service,
    Settings,
    creating_only,
    find_missing_invites_api,
    make_loads,
    run_invites_api,
)
from tests.bench.plans import Plan
from tests.postgresql import PostgresqlServer, new_database
from tests.servers import Prosody

__all__ = ["find_server_version", "make_postgresql_plan", "new_on", "serving_postgresql"]

# What PostgreSQL has by itself; the tests give it less.
_SETTINGS = {"shared_buffers": "128MB"}


@contextlib.contextmanager
def serving_postgresql() -> Iterator[PostgresqlServer]:
    """Run a server that syncs what it has acknowledged, as it comes, on data of its own."""
    with PostgresqlServer(durable=True, settings=_SETTINGS) as server:
        yield server


def find_server_version(url: str) -> str:
    """Return the version of a server."""
    with psycopg.connect(url) as connection:
        return str(connection.info.parameter_status("server_version"))


def new_on(server: PostgresqlServer) -> OpenDatabase:
    """Return what gives an empty database of a server for each measurement."""

    def open_database(folder: Path) -> contextlib.AbstractContextManager[str]:
        del folder  # The server has one of its own.
        return new_database(server.url)

    return open_database


def make_postgresql_plan(open_database: OpenDatabase) -> Plan:
    """Return the plan that measures two nodes and one beside Prosody.

    Args:
        open_database: Gives an empty database of the server that they all use.
    """
    service = partial(run_invites_api, open_database)
    return Plan(
        (
            _make_service_peer("two-nodes", "invites-api, two nodes, PostgreSQL", partial(service, 2)),
            _make_service_peer("one-node", "invites-api, one node, PostgreSQL", partial(service, 1)),
            Peer(
                "prosody-postgresql",
                "Prosody, PostgreSQL",
                Prosody.find_missing_postgresql,
                partial(creating_only, partial(_run_prosody, open_database)),
            ),
        ),
        {"x Prosody": "prosody-postgresql"},
        ("x Prosody: times the rate of Prosody with PostgreSQL.",),
        (
            "All are on one PostgreSQL server, which syncs every commit, each time on an empty database.",
            "The {workers} workers and the connections are spread evenly over the nodes.",
        ),
    )


def _make_service_peer(slug: str, title: str, run: RunPeer) -> Peer:
    return Peer(slug, title, find_missing_invites_api, partial(creating_only, run), is_python=True)


@contextlib.contextmanager
def _run_prosody(open_database: OpenDatabase, folder: Path, settings: Settings) -> Iterator[Service]:
    del settings  # It is one process with one thread.
    with open_database(folder) as url:
        prosody = Prosody(folder, "sql", sql=Prosody.sql_on_postgresql(url))
        key = prosody.create_key(HOST, "bench")
        with prosody:
            yield Service((prosody,), make_loads(key))
