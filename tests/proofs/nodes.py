"""Nodes of one service: several gunicorns on one database, and those who ask them."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from invites_core.stores import parse_sqlite_path
from tests.servers import Gunicorn

__all__ = ["APP", "Answer", "NodeCaller", "make_absolute", "prepare_nodes", "serving_nodes", "start_at_once"]

APP: Final = "invites_wsgi:create_app()"
PATIENCE: Final = 60.0
"""Seconds after which a node that ought to answer is given up."""


def make_absolute(url: str) -> str:
    """Return a URL of a database as nodes understand it, which run in folders of their own."""
    path = parse_sqlite_path(url)
    return url if path is None else f"sqlite:///{path.absolute()}"


def prepare_nodes(folder: Path, url: str, *, nodes: int, workers: int, app: str = APP) -> list[Gunicorn]:
    """Return nodes that serve one database; nothing runs before they are started.

    Args:
        folder: Where their output goes.
        url: The database.
        nodes: How many.
        workers: How many worker processes each has.
        app: What gunicorn is to serve.
    """
    env = {"INVITES_DATABASE": url, "INVITES_CONFIG": None}
    return [
        Gunicorn(
            folder / f"node-{number}",
            app,
            env,
            workers=workers,
            options=["--reuse-port"],
            path="/healthz",
            name=f"node-{number}",
        )
        for number in range(nodes)
    ]


def start_at_once(servers: list[Gunicorn]) -> list[BaseException | None]:
    """Start nodes at the same moment, and return for each why it did not come up, or None."""
    with ThreadPoolExecutor(len(servers)) as pool:
        return [future.exception() for future in [pool.submit(server.start) for server in servers]]


@contextlib.contextmanager
def serving_nodes(folder: Path, url: str, *, nodes: int, workers: int, app: str = APP) -> Iterator[list[Gunicorn]]:
    """Serve a database with several nodes, all workers of all of them there; the arguments are `prepare_nodes`'s."""
    servers = prepare_nodes(folder, url, nodes=nodes, workers=workers, app=app)
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        for failure in start_at_once(servers):
            if failure is not None:
                raise failure
        deadline = time.monotonic() + PATIENCE
        while any(len(server.worker_pids()) < workers for server in servers):
            if time.monotonic() > deadline:
                raise RuntimeError("not all workers have come up")
            time.sleep(0.02)
        yield servers


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node has answered.

    Attributes:
        status: The HTTP status.
        headers: The headers.
        document: What the body says, or None where there is none.
    """

    status: int
    headers: Mapping[str, str]
    document: Any

    @property
    def is_again(self) -> bool:
        """Whether the node asks to send the same once more, because it was too busy to begin."""
        return self.status == 503 and self.document["type"] in {"busy", "storage-busy"}

    @property
    def tokens(self) -> list[str]:
        """The invites of a creation."""
        return [invite["token"] for invite in self.document.get("invites", [self.document])]


class NodeCaller:
    """Somebody with a key and a connection to one node; for one thread at a time."""

    def __init__(self, port: int, combined: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._headers = {"Authorization": f"Bearer {combined}", "Accept": "application/json"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later request opens it again."""
        self._connection.close()

    def ask(
        self, method: str = "POST", path: str = "", body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request to the API and return what is answered.

        Args:
            method: The HTTP method.
            path: What follows ``/invites_api``.
            body: What is sent as JSON; None: no body.
            headers: More headers.

        Raises:
            OSError: There was no answer; whether it was done is not known.
            http.client.HTTPException: The answer was not a whole one; the same is not known.
        """
        sent = {**self._headers, **(headers or {})}
        content = None
        if body is not None:
            content, sent["Content-Type"] = json.dumps(body), "application/json"
        try:
            self._connection.request(method, f"/invites_api{path}", content, sent)
            response = self._connection.getresponse()
            document = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        return Answer(response.status, dict(response.headers), json.loads(document) if document else None)

    def ask_until_served(
        self, method: str = "POST", path: str = "", body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask, and again while the node is too busy to begin; what is sent can be repeated, or was not begun.

        A worker that does not know the key yet checks it for few at a time, and turns the others away.
        """
        deadline = time.monotonic() + PATIENCE
        while (answer := self.ask(method, path, body, headers)).is_again and time.monotonic() < deadline:
            time.sleep(0.01)
        return answer

    def redeem(self, token: str, name: str) -> Answer:
        """Redeem an invite by an identity of this name."""
        return self.ask_until_served(path=f"/invites/{token}/redeem", body={"redeemer": name, "redemption_id": name})
