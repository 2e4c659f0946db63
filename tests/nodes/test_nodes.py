"""Two nodes on one PostgreSQL: whatever is asked of one holds at the other, and nothing is done twice."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from pathlib import Path

import pytest

from invites_core import ApiKeys, Invites, Quota, Store
from tests.helpers import PATIENCE
from tests.nodes.support import CENTURY, HOST, ask_all, list_tokens, make_key, run_command
from tests.proofs.delete_race import run_race as run_delete_race
from tests.proofs.nodes import Answer, NodeCaller
from tests.proofs.redeem_race import run_race as run_redeem_race
from tests.servers import Gunicorn

pytestmark = pytest.mark.real_server


def test_every_invite_has_one_winner_over_both_nodes(postgresql_url: str) -> None:
    """Of 16 redeemers over two nodes exactly one gets each of 60 invites."""
    outcome = run_redeem_race(postgresql_url, invites=60, redeemers=16, processes=2, nodes=2)
    assert outcome.holds, outcome
    assert (outcome.successes, outcome.refused) == (60, 900)


def test_an_invite_is_used_as_often_as_it_says_over_both_nodes(nodes: list[Gunicorn], store: Store) -> None:
    """Of 16 redeemers over two nodes exactly five get an invite with five uses, whoever repeats what was won."""
    issued = make_key(store, all_invites=True)
    invites = Invites(store)
    tokens = [invite.token for invite in invites.create_many_for(HOST, 10, source="test", max_uses=5)]
    answers: list[tuple[str, int]] = []

    def redeem_each(caller: NodeCaller, number: int) -> None:
        # Two redeemers have one name, and one at each node: what they do is one redemption.
        answers.extend((token, caller.redeem(token, f"r{number // 2}").status) for token in tokens)

    ask_all(nodes, issued, 32, redeem_each)
    assert Counter(answers) == {(token, status): count for token in tokens for status, count in ((200, 10), (410, 22))}
    for token in tokens:
        assert (invites.get(token).uses, len(invites.list_redemptions(token))) == (5, 5)


def test_a_key_is_refused_by_both_nodes_once_it_is_deleted(postgresql_url: str, tmp_path: Path) -> None:
    """No request that begins after a deletion has returned is accepted by either node, under load."""
    outcome = run_delete_race(tmp_path, keys=6, workers=2, callers=8, nodes=2, url=postgresql_url)
    assert outcome.holds, outcome
    assert outcome.pending > 0


def test_nothing_of_a_key_is_left_pending_by_either_node(postgresql_url: str, tmp_path: Path) -> None:
    """A key that is deleted with its invites while both nodes create with it leaves none that can be used."""
    outcome = run_delete_race(tmp_path, keys=4, workers=2, callers=8, with_invites=True, nodes=2, url=postgresql_url)
    assert outcome.holds, outcome
    assert outcome.pending == 0


@pytest.mark.parametrize("by", ["library", "command"])
def test_a_key_that_was_deleted_beside_warm_nodes_is_refused_by_them(
    nodes: list[Gunicorn], store: Store, postgresql_url: str, by: str
) -> None:
    """Once a deletion has returned, whatever is asked on connections that were served just before is refused."""
    issued = make_key(store)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(NodeCaller(nodes[n % 2].port, issued.combined)) for n in range(8)]
        for caller in callers:
            assert [caller.ask_until_served("GET", "/key").status, caller.ask_until_served().status] == [200, 201]
        if by == "library":
            ApiKeys(store).delete(HOST, issued.key.id)
        else:
            run_command(postgresql_url, "delete", HOST, issued.key.id)
        for caller in callers:
            answers = [caller.ask("GET", "/key"), caller.ask("GET", "/invites"), caller.ask()]
            assert [answer.status for answer in answers] == [401, 401, 403]


def test_a_policy_that_is_changed_holds_at_both_nodes(nodes: list[Gunicorn], store: Store, postgresql_url: str) -> None:
    """Once `invites-api update` has ended, both nodes go by the new policy, and after `rotate` by the new secret."""
    issued = make_key(store)
    with NodeCaller(nodes[0].port, issued.combined) as one, NodeCaller(nodes[1].port, issued.combined) as two:
        assert [caller.ask_until_served(body={"max_uses": 2}).status for caller in (one, two)] == [403, 403]
        run_command(postgresql_url, "update", HOST, issued.key.id, "--max-uses", "2")
        assert [caller.ask_until_served(body={"max_uses": 2}).status for caller in (one, two)] == [201, 201]
        run_command(postgresql_url, "rotate", HOST, issued.key.id, "--no-grace")
        assert [caller.ask().status for caller in (one, two)] == [403, 403]


def test_a_quota_is_exact_over_both_nodes(nodes: list[Gunicorn], store: Store) -> None:
    """Of 300 requests at the same time over both nodes exactly the 100 of the quota are served."""
    issued = make_key(store, quota=Quota(100, CENTURY))
    answers: list[Answer] = []
    ask_all(nodes, issued, 30, lambda caller, _: answers.extend(caller.ask_until_served() for _ in range(10)))
    assert Counter(answer.status for answer in answers) == {201: 100, 429: 200}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status == 429)
    made = [token for answer in answers if answer.status == 201 for token in answer.tokens]
    assert sorted(made) == list_tokens(store, issued)


def test_several_at_once_take_all_or_nothing_of_a_quota(nodes: list[Gunicorn], store: Store) -> None:
    """Requests for seven invites take seven units of a quota of 100 or none, over both nodes, and leave two."""
    issued = make_key(store, quota=Quota(100, CENTURY))
    answers: list[Answer] = []

    def ask(caller: NodeCaller, _: int) -> None:
        answers.extend(caller.ask_until_served(body={"count": 7}) for _ in range(5))

    ask_all(nodes, issued, 10, ask)
    assert Counter(answer.status for answer in answers) == {201: 14, 429: 36}
    assert {len(answer.tokens) for answer in answers if answer.status == 201} == {7}
    assert len(list_tokens(store, issued)) == 98
    with NodeCaller(nodes[0].port, issued.combined) as one, NodeCaller(nodes[1].port, issued.combined) as two:
        assert one.ask_until_served("GET", "/key").document["quota_left"]["count"] == 2
        assert two.ask_until_served(body={"count": 3}).status == 429
        assert two.ask_until_served(body={"count": 2}).status == 201
        assert one.ask_until_served().status == 429


def test_one_idempotency_key_makes_the_same_invites_at_both_nodes(nodes: list[Gunicorn], store: Store) -> None:
    """Who sends one Idempotency-Key to both nodes at once gets the same invites everywhere, made and counted once."""
    issued = make_key(store, quota=Quota(1000, CENTURY))
    rounds, callers = 15, 8
    barrier = threading.Barrier(callers)
    answers: list[tuple[int, Answer]] = []

    def ask(caller: NodeCaller, _: int) -> None:
        for number in range(rounds):
            barrier.wait(PATIENCE)
            answer = caller.ask_until_served(body={"count": 3}, headers={"Idempotency-Key": f"round-{number}"})
            answers.append((number, answer))

    ask_all(nodes, issued, callers, ask)
    assert {answer.status for _, answer in answers} == {201}
    made = {(number, tuple(answer.tokens)) for number, answer in answers}
    assert len(made) == rounds
    assert sorted(token for _, tokens in made for token in tokens) == list_tokens(store, issued)
    with NodeCaller(nodes[0].port, issued.combined) as caller:
        assert caller.ask_until_served("GET", "/key").document["quota_left"]["count"] == 1000 - 3 * rounds
        other = caller.ask_until_served(body={"count": 2}, headers={"Idempotency-Key": "round-1"})
        assert other.status == 422
