"""A node that is killed under load takes nothing with it that was acknowledged, and the others go on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from invites_core import Invites, IssuedKey, Store
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_wsgi import create_app
from tests.helpers import wait_until
from tests.nodes.load import Load, running
from tests.nodes.support import list_tokens, make_key
from tests.proofs.nodes import NodeCaller, serving_nodes
from tests.servers import Gunicorn

pytestmark = pytest.mark.real_server

LATE_SECONDS: Final = 0.5


def make_forgetful_app() -> object:
    """Serve a store that acknowledges a change some time before it makes it; for gunicorn, in a worker."""
    pool = ThreadPoolExecutor(1)
    change = PostgresqlDatabase.change

    def change_later(self: PostgresqlDatabase, statement: str, bindings: Any, due: float) -> None:
        time.sleep(max(0.0, due - time.monotonic()))
        change(self, statement, bindings)

    def acknowledge_early(self: PostgresqlDatabase, statement: str, bindings: Any) -> Any:
        if "INSERT INTO invites" not in statement:
            return change(self, statement, bindings)
        pool.submit(change_later, self, statement, bindings, time.monotonic() + LATE_SECONDS)
        return [(True, True)]

    PostgresqlDatabase.change = acknowledge_early  # type: ignore[method-assign]  # what must never be done
    return create_app()


def kill_one(nodes: list[Gunicorn], issued: IssuedKey) -> Load:
    """Kill the first node while both are asked, and let the other be asked for some time."""
    with running(Load(), [node.port for node in nodes], issued.combined, callers=8) as load:
        wait_until(lambda: len(load.made) >= 100)
        nodes[0].kill()
        killed_at = len(load.made)
        wait_until(lambda: len(load.made) >= killed_at + 100)
    return load


def test_the_other_node_goes_on_where_one_is_killed(nodes: list[Gunicorn], store: Store) -> None:
    """Callers of a killed node repeat at the other; all that was acknowledged is there, and nothing is there twice."""
    issued = make_key(store)
    load = kill_one(nodes, issued)
    assert load.lost > 0
    assert load.unexpected == []
    assert sorted(load.made.values()) == list_tokens(store, issued)
    invites = Invites(store)
    assert len(load.used) >= 50
    for token, redemption_id in load.used.items():
        assert [redemption.redemption_id for redemption in invites.list_redemptions(token)] == [redemption_id]
        assert invites.get(token).uses == 1
    nodes[0].start()
    with NodeCaller(nodes[0].port, issued.combined) as caller:
        assert caller.ask_until_served().status == 201


def test_the_kill_shows_a_store_that_acknowledges_too_early(store: Store, postgresql_url: str, tmp_path: Path) -> None:
    """Where a creation is acknowledged before it is made, some are lost with their node, and it shows."""
    issued = make_key(store)
    app = "tests.nodes.test_node_kills:make_forgetful_app()"
    with serving_nodes(tmp_path, postgresql_url, nodes=2, workers=2, app=app) as nodes:
        load = kill_one(nodes, issued)
    assert set(load.made.values()) - set(list_tokens(store, issued))
