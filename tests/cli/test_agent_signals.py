"""`invites-api agent` ends when it is told to, whichever of its threads the system tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from invites_core import open_invite_store
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import url_of
from tests.helpers import wait_until
from tests.processes import StartPython

TELLS_ANOTHER_THREAD = """
import signal, sys, threading
from invites_wsgi.cli import main

def tell():
    sys.stdin.readline()
    signal.pthread_kill(threading.get_ident(), signal.Signals[name])

name = sys.argv.pop(1)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.Signals[name]])
threading.Thread(target=tell, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.Signals[name]])
main()
"""
"""Python runs a handler in the main thread only, and here the system never interrupts that thread for it."""


@pytest.mark.real_server
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_another_thread_takes_ends_the_agent(
    start_python: StartPython, database: Path, tmp_path: Path, name: str
) -> None:
    """The thread that waits for connections hears of it at once, also where nobody connects any more."""
    SqliteStore(database).close()
    path = tmp_path / "agent.sock"
    process = start_python(TELLS_ANOTHER_THREAD, name, "agent", "--store", url_of(database), "--listen", path)
    wait_until(path.exists)
    open_invite_store(f"agent://{path}").close()
    process.go()
    assert process.finish() == ""
    assert not path.exists()
