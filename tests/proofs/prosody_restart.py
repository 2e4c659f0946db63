"""Prosody is killed and started again while invites are made over HTTP: nothing that was acknowledged is missing."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from invites_core import ApiKeys, open_invite_store, open_store
from invites_core.testing.base import wait_until
from tests.proofs.prosody_services import agent_of
from tests.servers import Gunicorn, Prosody

__all__ = ["Outcome", "run_restarts"]

HOST = "example.com"


@dataclass(slots=True)
class Outcome:
    """What was seen.

    Attributes:
        acknowledged: The tokens of all answers of 201.
        statuses: How often each status came; 0 where the connection broke.
        while_away: How often each status came to requests that were both sent and answered without a Prosody.
        seconds_to_service: How long after each start of Prosody the first invite was made.
        missing: Acknowledged tokens that are not there in the end.
    """

    acknowledged: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    while_away: Counter[int] = field(default_factory=Counter)
    seconds_to_service: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether there was 503 without Prosody, service with it, and nothing was lost."""
        return (
            self.while_away.keys() == {503}
            and self.statuses.keys() == {201, 503}
            and bool(self.seconds_to_service)
            and not self.missing
        )


class _Load:
    """Connections that make invites one after the other, until they are told to stop."""

    def __init__(self, port: int, key: str) -> None:
        self.outcome = Outcome()
        self.done = threading.Event()
        self.is_away = False
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}"}
        self._lock = threading.Lock()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self.done.is_set():
            was_away = self.is_away
            status, link = self._ask(connection)
            with self._lock:
                self.outcome.statuses[status] += 1
                if was_away and self.is_away:
                    self.outcome.while_away[status] += 1
                if status == 201:
                    self.outcome.acknowledged.append(link.rpartition("?")[2])
            if status != 201:
                self.done.wait(0.02)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> tuple[int, str]:
        try:
            connection.request("GET", "/invites_api", headers=self._headers)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return 0, ""
        return response.status, response.headers.get("Location", "")

    def wait_for(self, counter: Counter[int], status: int, more: int) -> None:
        target = counter[status] + more
        wait_until(lambda: counter[status] >= target)


def run_restarts(prosody: Prosody, folder: Path, *, kills: int = 2, connections: int = 16, more: int = 100) -> Outcome:
    """Kill and start a running Prosody under load that comes over HTTP, gunicorn, an agent and its socket.

    Args:
        prosody: One that runs, with example.com.
        folder: Where the files of service and agent go.
        kills: How often it is killed.
        connections: How many connections make invites.
        more: How many invites are made before each kill and after the last start.
    """
    keys, settings = folder / "keys.db", folder / "service.toml"
    store = open_store(f"sqlite:///{keys}")
    key = ApiKeys(store).create(HOST).combined
    store.close()
    with agent_of(prosody, folder) as url:
        settings.write_text(f'database = "sqlite:///{keys}"\ninvites = "{url}"\n[hosts."{HOST}"]\n', "utf-8")
        environment = {"INVITES_CONFIG": str(settings), "INVITES_DATABASE": None}
        with Gunicorn(folder, "invites_wsgi:create_app()", environment, path="/healthz") as service:
            load = _Load(service.port, key)
            with ThreadPoolExecutor(connections) as threads:
                running = [threads.submit(load.run) for _ in range(connections)]
                _kill_and_start(prosody, load, kills=kills, more=more)
            for one in running:
                one.result()
        store_behind = open_invite_store(url)
        load.outcome.missing = [token for token in load.outcome.acknowledged if not store_behind.find_invite(token)]
        store_behind.close()
    return load.outcome


def _kill_and_start(prosody: Prosody, load: _Load, *, kills: int, more: int) -> None:
    outcome = load.outcome
    try:
        for _ in range(kills):
            load.wait_for(outcome.statuses, 201, more)
            prosody.kill()
            load.is_away = True
            load.wait_for(outcome.while_away, 503, 50)
            load.is_away = False
            prosody.start()
            started = time.monotonic()
            load.wait_for(outcome.statuses, 201, 1)
            outcome.seconds_to_service.append(round(time.monotonic() - started, 3))
        load.wait_for(outcome.statuses, 201, more)
    finally:
        load.done.set()
