"""Nodes and commands that start at the same moment do not disturb each other, nor those that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from invites_core import Store
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_schema import MIGRATIONS
from invites_wsgi import create_app
from tests.helpers import run_at_once
from tests.nodes.support import HOST, ask_all, make_key, run_command
from tests.proofs.nodes import NodeCaller, prepare_nodes, start_at_once
from tests.servers import Gunicorn

pytestmark = pytest.mark.real_server

NEWER: Final = (*MIGRATIONS, "CREATE TABLE newer (made bigint);\nINSERT INTO newer (made) VALUES (1);\n")


def make_newer_app() -> object:
    """Serve with a program that knows one migration more; for gunicorn, in a worker."""
    defaults = PostgresqlDatabase.__init__.__kwdefaults__
    assert defaults is not None
    defaults["migrations"] = NEWER
    return create_app()


def read(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, application_name="tests") as connection:
        return connection.execute(statement.encode()).fetchall()


def test_nodes_make_no_tables(postgresql_url: str, tmp_path: Path) -> None:
    """Nodes that are started on an empty database say that there is none, and leave it empty."""
    nodes = prepare_nodes(tmp_path, postgresql_url, nodes=2, workers=1)
    failures = start_at_once(nodes)
    assert all("it has no tables of invites-api" in str(failure) for failure in failures), failures
    assert read(postgresql_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


def test_keys_are_made_on_an_empty_database_at_the_same_moment(postgresql_url: str) -> None:
    """Commands that make the first keys at once make the tables once, and all their keys are there."""
    made = run_at_once([lambda: run_command(postgresql_url, "create", HOST, "My test key")] * 4)
    listed = [line.split("\t")[0] for line in run_command(postgresql_url, "list", HOST).splitlines()]
    assert sorted(listed) == sorted(str(combined).partition("/")[0] for combined in made)
    assert read(postgresql_url, "SELECT version FROM invites_schema") == [(len(MIGRATIONS),)]


def test_nodes_that_start_together_migrate_once_while_others_serve(
    nodes: list[Gunicorn], store: Store, postgresql_url: str, tmp_path: Path
) -> None:
    """Newer nodes that start at the same moment make each migration once, and those that run serve on."""
    issued = make_key(store)
    newer = prepare_nodes(
        tmp_path / "newer", postgresql_url, nodes=2, workers=2, app="tests.nodes.test_starts:make_newer_app()"
    )
    try:
        assert start_at_once(newer) == [None, None]
        assert read(postgresql_url, "SELECT version FROM invites_schema") == [(len(NEWER),)]
        assert read(postgresql_url, "SELECT count(*) FROM newer") == [(1,)]
        ask_all([*nodes, *newer], issued, 4, lambda caller, _: check_served(caller))
    finally:
        for node in newer:
            node.stop()


def check_served(caller: NodeCaller) -> None:
    assert caller.ask_until_served().status == 201
