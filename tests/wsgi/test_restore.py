"""A backup that is taken under load, and a service that goes on from it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core import ApiKeys, KeyPolicy
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import run_command, url_of
from tests.helpers import wait_until
from tests.wsgi.support import Answer, ask_server, make_serve

pytestmark = pytest.mark.real_server

CALLERS = 4


class Load:
    """Callers that make invites and use every other one, and remember what was acknowledged."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._stopping = threading.Event()
        self._numbers = itertools.count()
        self.made: list[str] = []
        self.used: list[str] = []
        self.refused: list[int] = []

    def create(self) -> Answer:
        return ask_server(self._port, "/invites_api", method="POST", headers=self._headers)

    def redeem(self, token: str, redemption_id: str) -> Answer:
        body = json.dumps({"redeemer": "alice", "redemption_id": redemption_id}).encode()
        target = f"/invites_api/invites/{token}/redeem"
        return ask_server(self._port, target, method="POST", headers=self._headers, body=body)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let the callers work inside."""
        threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def wait_for(self, uses: int) -> None:
        """Return when so many more invites have been used."""
        enough = len(self.used) + uses
        wait_until(lambda: len(self.used) >= enough)

    def _call(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while not self._stopping.is_set():
                answer = self.create()
                if answer.status != 201:
                    self.refused.append(answer.status)
                    continue
                token = answer["Location"].rpartition("?")[2]
                self.made.append(token)
                if next(self._numbers) % 2 and self.redeem(token, f"id-{token}").status == 200:
                    self.used.append(token)


def test_what_was_acknowledged_before_a_backup_is_restored(tmp_path: Path) -> None:
    """Backups under load hold all that was answered before; a service goes on from one, and uses nothing twice."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    database = folder / "invites.db"
    store = SqliteStore(database)
    policy = KeyPolicy(scopes=frozenset({"create", "redeem"}))
    key = ApiKeys(store).create("example.com", policy=policy).combined
    store.close()

    with make_serve(tmp_path / "before", database, workers=2) as server:
        load = Load(server.port, key)
        with load.running():
            for number in range(3):
                load.wait_for(20)
                made, used = list(load.made), list(load.used)
                ended = run_command("--database", url_of(database), "backup", str(folder / f"backup-{number}.db"))
                assert ended.returncode == 0, ended
                assert_holds(folder / f"backup-{number}.db", made, used)
            # The service has gone on beside it.
            load.wait_for(5)
        assert load.refused == []
        later = set(load.made) - set(made)

    # As the page says: what is there is moved away, and a copy of the backup takes its place.
    away = tmp_path / "away"
    away.mkdir(mode=0o700)
    for part in ("invites.db", "invites.db-wal", "invites.db-shm"):
        if (folder / part).exists():
            (folder / part).rename(away / part)
    shutil.copyfile(folder / "backup-2.db", database)
    database.chmod(0o600)
    checked = run_command("--database", url_of(database), "check")
    assert checked.returncode == 0, checked

    with make_serve(tmp_path / "after", database, workers=2) as server:
        load = Load(server.port, key)
        assert {load.redeem(token, f"id-{token}").status for token in used} == {200}
        assert {load.redeem(token, "another").status for token in used[-20:]} == {410}
        pending = sorted(set(made) - set(used))[:20]
        assert {load.redeem(token, "first").status for token in pending} <= {200, 410}
        assert {load.redeem(token, "second").status for token in pending} == {410}
        assert load.create().status == 201
        # Those of after the backup are gone, apart from those that came in while it began.
        assert {load.redeem(token, f"id-{token}").status for token in list(later)[-20:]} <= {200, 404}


def assert_holds(backup: Path, made: list[str], used: list[str]) -> None:
    """Check that a backup is sound, and holds these invites, and that these were used once."""
    store = SqliteStore(backup, create=False)
    try:
        assert store.find_problems() == []
        assert [token for token in made if store.find_invite(token) is None] == []
        for token in used:
            invite = store.find_invite(token)
            assert invite is not None
            assert invite.uses == 1
            assert [redemption.redemption_id for redemption in store.list_redemptions(token)] == [f"id-{token}"]
    finally:
        store.close()
