"""Synapse's registration tokens: what Matrix has for invite links, made over its admin API.

Synapse is as it comes: one process, SQLite through one connection, in WAL mode with ``synchronous`` FULL, SQLite's own
default, so that every token is synced before its answer. No limit of rate applies to its admin API; none is set here.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.bench.environments import Environment
from tests.bench.load import Load
from tests.bench.peers import HOST, Peer, Service, Settings
from tests.servers import Server, ServerFailed

__all__ = ["ENVIRONMENT", "make_synapse_peer", "run_synapse"]

ENVIRONMENT: Final = Environment("synapse", ("matrix-synapse >= 1.140",), ("matrix-synapse",))

# By default it listens on a fixed port, serves other servers too, and asks one of them for keys.
_CHANGES: Final = """\
listeners:
  - {{bind_addresses: ["127.0.0.1"], port: {port}, type: http, resources: [{{names: [client]}}]}}
trusted_key_servers: []
registration_shared_secret: "{secret}"
"""


class _Synapse(Server):
    # It makes its tables one version of the schema after another.
    start_seconds = 90.0


def make_synapse_peer(say: Callable[[str], None]) -> Peer:
    """Return the peer; its environment is made when it is first asked what is missing.

    Args:
        say: Is told before something is installed.
    """
    return Peer(
        "synapse",
        "Synapse, registration tokens",
        partial(ENVIRONMENT.ensure, say),
        run_synapse,
        is_python=True,
        find_versions=ENVIRONMENT.find_versions,
    )


@contextmanager
def run_synapse(folder: Path, settings: Settings) -> Iterator[Service]:
    """Serve registration tokens to a new admin; a refusal is that of an unknown access token."""
    del settings  # It is one process with one thread, and one for the database.
    secret, changes = secrets.token_urlsafe(), folder / "changes.yaml"
    module = [str(ENVIRONMENT.python), "-I", "-m", "synapse.app.homeserver", "--config-path", "homeserver.yaml"]
    _generate_config([*module, "--generate-config", "--server-name", HOST, "--report-stats", "no"], folder)
    server = _Synapse(folder, [*module, "--config-path", str(changes)], path="/health", name="synapse")
    changes.write_text(_CHANGES.format(port=server.port, secret=secret), "utf-8")
    with server:
        token = _register_admin(server.port, secret)
        wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
        yield Service((server,), (_make_load("create", token, 200), _make_load("refuse", wrong, 401)))


def _make_load(name: str, token: str, status: int) -> Load:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    target = "/_synapse/admin/v1/registration_tokens/new"
    return Load(name, target, status, method="POST", headers=headers, body="{}")


def _generate_config(argv: list[str], folder: Path) -> None:
    argv = [*argv, "--data-directory", str(folder)]
    run = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if run.returncode != 0:
        raise ServerFailed(f"synapse --generate-config: exit {run.returncode}\n{run.stdout}{run.stderr}")


def _register_admin(port: int, secret: str) -> str:
    """Make an account as register_new_matrix_user does, and return its access token."""
    path = "/_synapse/admin/v1/register"
    nonce = _ask(port, "GET", path)["nonce"]
    name, password = "bench", secrets.token_urlsafe()
    mac = hmac.new(secret.encode(), b"\0".join(map(str.encode, (nonce, name, password, "admin"))), hashlib.sha1)
    account = {"nonce": nonce, "username": name, "password": password, "admin": True, "mac": mac.hexdigest()}
    return str(_ask(port, "POST", path, account)["access_token"])


def _ask(port: int, method: str, path: str, body: object = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerFailed(f"synapse did not answer to {method} {path}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise ServerFailed(f"synapse answered {answer.status} to {method} {path}")
    found: dict[str, Any] = json.loads(text)
    return found
