"""An agent in front of a Prosody for proofs: a process of its own, as in service."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from invites_core.testing.base import wait_until
from tests.servers import Prosody, ServerFailed

__all__ = ["agent_of"]


@contextlib.contextmanager
def agent_of(prosody: Prosody, folder: Path, *, host: str = "example.com") -> Iterator[str]:
    """Run an agent that serves the invites of a Prosody, and give the URL of its store."""
    settings, path, log = folder / "agent.toml", folder / "agent.sock", folder / "agent.log"
    settings.write_text(f'[hosts."{host}"]\n', "utf-8")
    command = [sys.executable, "-m", "invites_wsgi.cli", "--config", str(settings), "agent"]
    with log.open("wb") as opened:
        argv = [*command, "--store", f"prosody://{prosody.socket}", "--listen", str(path)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=opened, stderr=opened)
    with process:
        try:
            wait_until(lambda: path.exists() or process.poll() is not None)
            if process.poll() is not None:
                raise ServerFailed(f"the agent ended at its start\n{log.read_text('utf-8')}")
            yield f"agent://{path}"
        finally:
            process.terminate()
