"""What an answer acknowledges was committed by PostgreSQL before: seen in what the server says, and in the app."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from invites_core import ApiKeys, SecretHasher
from invites_core.invites import Invite
from invites_core.store import Grant, GrantTaken
from invites_core.stores.postgresql import PostgresqlStore
from invites_wsgi import App, Settings
from tests.helpers import PATIENCE
from tests.postgresql import new_database
from tests.postgresql_proxy import Fault, Message, PostgresqlProxy
from tests.wsgi.callers import EVERYTHING
from tests.wsgi.support import ask

pytestmark = pytest.mark.real_server


class Journal:
    """Knows what the server has committed, by its messages; it is watched before they are passed on.

    For one connection at a time.
    """

    def __init__(self) -> None:
        self._sent = b""
        self._committed = b""

    def watch(self, message: Message) -> bool:
        """Follow a message; nothing goes wrong."""
        if message.side == "client":
            self._sent += message.body
        elif message.kind == "E":
            self._sent = b""
        elif message.kind == "Z" and message.body == b"I":
            # Ready, and in no transaction: whatever was sent before is committed (PostgreSQL's documentation, 55.2).
            self._committed, self._sent = self._committed + self._sent, b""
        return False

    def is_committed(self, token: str) -> bool:
        """Whether a statement with a token in it was committed."""
        return token.encode() in self._committed


@pytest.fixture
def journal() -> Journal:
    """An empty journal."""
    return Journal()


@pytest.fixture
def store(postgresql_server: str, journal: Journal) -> Iterator[PostgresqlStore]:
    """A store behind a proxy that keeps the journal."""
    with new_database(postgresql_server) as url:
        mark = "&" if "?" in url else "?"
        with PostgresqlProxy(f"{url}{mark}sslmode=disable&gssencmode=disable") as proxy:
            opened = PostgresqlStore(proxy.url, timeout=PATIENCE)
            proxy.fail(Fault("cut", journal.watch))
            yield opened
            opened.close()


def create(store: PostgresqlStore, hasher: SecretHasher, journal: Journal, count: int) -> list[bool]:
    """Make invites over HTTP, and return for each whether it was committed when its answer came."""
    app = App(Settings(database="memory:"), key_store=store, invite_store=store, hasher=hasher)
    key = ApiKeys(store, hasher=hasher).create("example.com", policy=EVERYTHING).combined
    answers = (ask(app, f"/invites_api?key={key}") for _ in range(count))
    return [journal.is_committed(answer.token) for answer in answers]


def test_every_creation_is_committed_before_its_answer(
    store: PostgresqlStore, hasher: SecretHasher, journal: Journal
) -> None:
    """The word of the server that it has committed, which is when its disk has it, comes before each 201."""
    assert create(store, hasher, journal, count=20) == [True] * 20


def test_an_answer_that_comes_early_is_found(
    store: PostgresqlStore, hasher: SecretHasher, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where creations are answered before they are written, that is seen."""
    add_granted, late = store.add_granted, list[Callable[[], object]]()
    tokens: list[str] = []

    def add_later(grant: Grant, invites: Sequence[Invite]) -> GrantTaken:
        tokens.extend(grant.tokens)
        late.append(lambda: add_granted(grant, invites))
        return GrantTaken(outcome="taken", tokens=grant.tokens, created_at=grant.now)

    monkeypatch.setattr(store, "add_granted", add_later)
    assert create(store, hasher, journal, count=1) == [False]
    late.pop()()
    assert journal.is_committed(*tokens)
