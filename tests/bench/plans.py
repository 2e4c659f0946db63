"""What one run of the bench measures: the peers, what they are held against, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from tests.bench.api_key import make_api_key_peer
from tests.bench.peers import PEERS, Peer, creating_only, find_missing_invites_api, new_sqlite, run_invites_api
from tests.bench.synapse import make_synapse_peer

__all__ = ["DEFAULT", "FETCHED_PEERS", "POSTGRESQL_PEERS", "PROSODY_PEERS", "Plan", "make_fetched_plan", "make_sweep"]


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

FETCHED_PEERS = ("synapse", "drf-api-key")
"""Who is measured with ``--peers all`` only, because it has to be installed first."""

POSTGRESQL_PEERS = ("two-nodes", "one-node", "prosody-postgresql")
"""Who is measured on PostgreSQL: the command line names them where there may be no driver for it."""

PROSODY_PEERS = tuple(
    f"{side}-{storage}" for storage in ("default", "sqlite", "postgresql") for side in ("agent", "api")
)
"""Who is measured where the service stands in front of a Prosody; named for the same reason."""

_SWEPT_CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
_SWEPT_WORKERS = (1, 2, 3, 4)
_USUAL_CONNECTIONS, _USUAL_WORKERS = 16, 2


def make_fetched_plan(say: Callable[[str], None]) -> Plan:
    """Return the default plan with the peers that are installed for it.

    Args:
        say: Is told before something is installed.
    """
    return replace(
        DEFAULT,
        peers=(*DEFAULT.peers, make_synapse_peer(say), make_api_key_peer(say)),
        method=(
            "Synapse and the Django site run in virtual environments of their own, on SQLite.",
            "Both have it in WAL mode with synchronous FULL, so they sync what they create before they answer.",
            "Nothing limits the rate of either: Synapse has no limit for its admin API, and the site has none.",
            "Synapse is one process; the site is under gunicorn with as many workers and threads as the service.",
        ),
    )


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
