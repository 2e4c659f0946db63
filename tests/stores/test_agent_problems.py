"""What an agent tells of the store behind it when something is wrong, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from invites_core.errors import StorageBusy, StorageError
from invites_core.stores.agent import AgentStore
from invites_core.stores.agent_wire import LONGEST_MESSAGE, MOST_PROBLEMS
from invites_core.stores.memory import MemoryStore
from tests.helpers import PATIENCE, make_invite
from tests.stores.agents import serving


class Ailing(MemoryStore):
    """Has problems of hosts, and fails where an invite is looked for."""

    def __init__(self, problems: dict[str, int]) -> None:
        super().__init__()
        self._problems = problems

    def find_problems(self) -> Sequence[str]:
        return self.find_problems_of(lambda _: True)

    def find_problems_of(self, serves: Callable[[str], bool]) -> Sequence[str]:
        return [f"{host}: {each}" for host, count in self._problems.items() if serves(host) for each in range(count)]

    def find_invite(self, token: str) -> None:
        raise StorageError("the disk is on fire")


def test_a_client_learns_of_its_own_hosts_alone(tmp_path: Path) -> None:
    """Problems of hosts that the agent does not serve, and their names, are told to nobody."""
    store = Ailing({"example.com": 2, "secret.example": 3})
    with serving(store, tmp_path / "s", hosts=frozenset({"example.com"})):
        client = AgentStore(tmp_path / "s", timeout=PATIENCE)
        assert list(client.find_problems()) == ["example.com: 0", "example.com: 1"]
        client.close()


@pytest.mark.parametrize("count", [MOST_PROBLEMS, MOST_PROBLEMS + 1, 5_000])
def test_many_problems_are_cut_and_counted(tmp_path: Path, count: int) -> None:
    """As many problems as an answer holds are told; of more the last line says how many there are."""
    with serving(Ailing({"example.com": count}), tmp_path / "s"):
        client = AgentStore(tmp_path / "s", timeout=PATIENCE)
        found = client.find_problems()
        client.close()
    assert len(found) == MOST_PROBLEMS
    rest = count - MOST_PROBLEMS + 1
    assert found[-1] == (f"and {rest} more problems" if count > MOST_PROBLEMS else f"example.com: {count - 1}")


def test_errors_in_a_loop_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand failures of one kind the log has one, and one of another kind is not lost among them."""
    log = logging.getLogger("tests.agent-in-trouble")
    with caplog.at_level(logging.WARNING, log.name), serving(Ailing({}), tmp_path / "s", log=log):
        client = AgentStore(tmp_path / "s", timeout=PATIENCE)
        for _ in range(1_000):
            with pytest.raises(StorageError):
                client.find_invite("x" * 24)
        client.close()
    told = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert told.count("find_invite: StorageError: the disk is on fire") == 1
    assert len(told) <= 2


@pytest.mark.parametrize("text", ["x" * 50_000, "é" * 20_000, "half a \ud800 pair"], ids=["long", "wide", "surrogate"])
def test_whatever_a_store_says_is_told_in_short(tmp_path: Path, text: str) -> None:
    """A message of any length, and one that is no valid text, is told as far as an answer holds it, and is no fault."""

    class Talkative(MemoryStore):
        def find_problems(self) -> list[str]:
            return [text] * MOST_PROBLEMS

        def add_invites(self, *_: Any, **__: Any) -> None:
            raise StorageBusy(text)

    with serving(Talkative(), tmp_path / "s"):
        client = AgentStore(tmp_path / "s", timeout=PATIENCE)
        assert {len(problem) for problem in client.find_problems()} == {min(len(text), LONGEST_MESSAGE)}
        with pytest.raises(StorageBusy) as caught:
            client.add_invites([make_invite()])
        client.close()
    assert str(caught.value)[:7] == text[:7]
