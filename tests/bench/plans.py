"""What one run of the bench measures: the peers, what they are held against, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from tests.bench.peers import PEERS, Peer, creating_only, find_missing_invites_api, new_sqlite, run_invites_api

__all__ = ["DEFAULT", "POSTGRESQL_PEERS", "Plan", "make_sweep"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured side by side.

    Attributes:
        peers: Whom.
        measures: What the others are held against, the name of a column -> the slug of the peer. Under the same load,
            or else when it creates.
        legend: What stands below the table.
        method: Sentences to those of every run; the names of settings stand in braces.
    """

    peers: tuple[Peer, ...]
    measures: Mapping[str, str] = field(default_factory=dict)
    legend: tuple[str, ...] = ()
    method: tuple[str, ...] = ()


DEFAULT = Plan(
    PEERS,
    {"x Prosody": "prosody-sqlite", "x bare": "bare"},
    ("x Prosody: times the rate of Prosody with SQLite under the same load; x bare: times the bare app's.",),
)

POSTGRESQL_PEERS = ("two-nodes", "one-node", "prosody-postgresql")
"""Who is measured on PostgreSQL: the command line names them where there may be no driver for it."""

_SWEPT_CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
_SWEPT_WORKERS = (1, 2, 3, 4)
_USUAL_CONNECTIONS, _USUAL_WORKERS = 16, 2


def make_sweep() -> Plan:
    """Return the plan that measures the service on SQLite over numbers of connections, and of workers."""
    points = [(connections, _USUAL_WORKERS) for connections in _SWEPT_CONNECTIONS]
    points += [(_USUAL_CONNECTIONS, workers) for workers in _SWEPT_WORKERS if workers != _USUAL_WORKERS]
    return Plan(
        tuple(_make_point(connections, workers) for connections, workers in points),
        {"x usual": _name_point(_USUAL_CONNECTIONS, _USUAL_WORKERS)},
        (f"x usual: times the rate with {_USUAL_CONNECTIONS} connections and {_USUAL_WORKERS} workers.",),
        ("The peers are all the service on SQLite; each says how many connections and workers it has.",),
    )


def _name_point(connections: int, workers: int) -> str:
    return f"{connections}-connections-{workers}-workers"


def _make_point(connections: int, workers: int) -> Peer:
    return Peer(
        _name_point(connections, workers),
        f"connections {connections:2}, workers {workers}",
        find_missing_invites_api,
        partial(creating_only, partial(run_invites_api, new_sqlite, 1)),
        is_python=True,
        overrides={"connections": connections, "workers": workers},
    )
