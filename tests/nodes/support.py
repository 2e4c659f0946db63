"""What the tests of several nodes share: keys, callers at all nodes, and the command."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final

from invites_core import ApiKeys, Invites, IssuedKey, KeyPolicy, Store
from invites_core.keys import SCOPES
from tests.helpers import PATIENCE
from tests.proofs.nodes import NodeCaller
from tests.servers import Gunicorn

__all__ = ["CENTURY", "HOST", "ask_all", "list_tokens", "make_key", "run_command"]

HOST: Final = "example.com"
CENTURY: Final = timedelta(days=36_500)
"""A period of a quota that does not end while a test runs."""


def make_key(store: Store, **policy: Any) -> IssuedKey:
    """Make a key that may do everything with its invites, and what is said here."""
    return ApiKeys(store).create(HOST, policy=KeyPolicy(scopes=SCOPES, **policy))


def ask_all(nodes: Sequence[Gunicorn], issued: IssuedKey, callers: int, ask: Callable[[NodeCaller, int], None]) -> None:
    """Let callers with one key ask at the same time, each in a thread of its own, spread over the nodes."""
    barrier = threading.Barrier(callers)

    def call(number: int) -> None:
        with NodeCaller(nodes[number % len(nodes)].port, issued.combined) as caller:
            # From here on the worker knows the key, and nobody is held up by its being checked.
            assert caller.ask_until_served("GET", "/key").status == 200
            barrier.wait(PATIENCE)
            ask(caller, number)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))


def list_tokens(store: Store, issued: IssuedKey) -> list[str]:
    """Return the tokens of all invites that a key has made, sorted."""
    tokens, cursor = [], None
    while True:
        page = Invites(store).list(HOST, source=issued.key.source, limit=1000, cursor=cursor)
        tokens += [invite.token for invite in page.invites]
        cursor = page.next
        if cursor is None:
            return sorted(tokens)


def run_command(url: str, *arguments: str) -> str:
    """Run `invites-api` on a database, and return what it printed."""
    argv = [sys.executable, "-P", "-m", "invites_wsgi.cli", "--database", url, *arguments]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
