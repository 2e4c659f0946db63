"""The API under a real gunicorn with several workers: one winner for an invite, and no life in a deleted key."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from invites_core import ApiKeys, Invites
from invites_core.stores.sqlite import SqliteStore
from tests.helpers import PATIENCE
from tests.proofs import delete_race
from tests.proofs.delete_race import Outcome, run_race, serving
from tests.wsgi.callers import EVERYTHING

REDEEMERS = 24


@pytest.mark.real_server
def test_one_of_many_redeems_an_invite(tmp_path: Path, database: Path) -> None:
    """Of many requests that are released at the same instant exactly one is 200, and all others are 410."""
    store = SqliteStore(database)
    key = ApiKeys(store).create("example.com", policy=EVERYTHING).combined
    invites = Invites(store)
    tokens = [invite.token for invite in invites.create_many_for("example.com", 10, source="test")]
    barrier = threading.Barrier(REDEEMERS, timeout=PATIENCE)
    answers: dict[str, Counter[int]] = {token: Counter() for token in tokens}
    lock = threading.Lock()

    def redeem(name: str, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.connect()
        body = json.dumps({"redeemer": name, "redemption_id": name})
        for token in tokens:
            barrier.wait()
            status = 503
            # A worker that does not know the key yet checks it for few at a time; the others repeat what they asked.
            while status == 503:
                connection.request("POST", f"/invites_api/invites/{token}/redeem", body, headers)
                response = connection.getresponse()
                response.read()
                status = response.status
            with lock:
                answers[token][status] += 1
        connection.close()

    with serving(tmp_path / "server", database, 3) as server:
        threads = [threading.Thread(target=redeem, args=(f"r{n}", server.port)) for n in range(REDEEMERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert answers == {token: Counter({200: 1, 410: REDEEMERS - 1}) for token in tokens}
    for token in tokens:
        assert (invites.get(token).uses, len(invites.list_redemptions(token))) == (1, 1)
    store.close()


@pytest.mark.real_server
def test_a_deleted_key_is_refused_at_once(tmp_path: Path) -> None:
    """No request that begins after a deletion has returned is accepted, in any warm worker under load."""
    outcome = run_race(tmp_path, keys=20, workers=4, callers=8)
    assert outcome.holds, outcome
    assert outcome.pending > 0


@pytest.mark.real_server
def test_nothing_of_a_key_is_left_pending(tmp_path: Path) -> None:
    """A key that is deleted with its invites while it creates at full speed leaves none that can be used."""
    outcome = run_race(tmp_path, keys=10, workers=4, callers=8, with_invites=True)
    assert outcome.holds, outcome
    assert outcome.pending == 0


PLAIN = Outcome(keys=2, workers=1, accepted=9, late=8)


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(replace(PLAIN, accepted_late=1), id="accepted-late"),
        pytest.param(replace(PLAIN, unexpected=[503]), id="another-answer"),
        pytest.param(replace(PLAIN, accepted=1), id="the-keys-never-worked"),
        pytest.param(replace(PLAIN, late=0), id="nothing-came-late"),
    ],
)
def test_an_outcome_that_does_not_hold(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys that worked and were all refused afterwards hold; anything less does not, and the command exits 1."""
    monkeypatch.setattr("sys.argv", ["delete-race"])
    for shown, code in ((PLAIN, 0), (outcome, 1)):
        monkeypatch.setattr(delete_race, "run_race", lambda _, shown=shown, **__: shown)
        assert delete_race.main() == code
        assert capsys.readouterr().out.splitlines()[-1].startswith("NOT" if code else "every")
