"""djangorestframework-api-key: what a Django site would take for keys, before a view that creates an invite.

The site is tests/bench/django_site, under gunicorn with as many workers and threads as the service. Its SQLite is in
WAL mode with ``synchronous`` FULL, so that every invite is synced before its answer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.environments import Environment
from tests.bench.load import Load
from tests.bench.peers import Peer, Service, Settings
from tests.servers import ROOT, Gunicorn, ServerFailed

__all__ = ["ENVIRONMENT", "make_api_key_peer", "run_django_site"]

ENVIRONMENT: Final = Environment(
    "drf-api-key",
    ("djangorestframework-api-key >= 3.1", "djangorestframework >= 3.16", "django >= 5.2", "gunicorn >= 26.1"),
    ("djangorestframework-api-key", "djangorestframework", "django"),
)


def make_api_key_peer(say: Callable[[str], None]) -> Peer:
    """Return the peer; its environment is made when it is first asked what is missing.

    Args:
        say: Is told before something is installed.
    """
    return Peer(
        "drf-api-key",
        "Django, djangorestframework-api-key",
        partial(ENVIRONMENT.ensure, say),
        run_django_site,
        is_python=True,
        find_versions=ENVIRONMENT.find_versions,
    )


@contextmanager
def run_django_site(folder: Path, settings: Settings) -> Iterator[Service]:
    """Serve the site with a new key; a refusal is that of a wrong secret of this key."""
    env = {
        "PYTHONPATH": str(ROOT),
        "DJANGO_SETTINGS_MODULE": "tests.bench.django_site.settings",
        "INVITES_BENCH_DATABASE": str(folder / "django.sqlite3"),
    }
    key = _make_key(folder, env)
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    server = Gunicorn(
        folder,
        "django.core.wsgi:get_wsgi_application()",
        env,
        python=str(ENVIRONMENT.python),
        workers=settings.workers,
        threads=settings.threads,
        # With a socket for each worker no accept race can put nearly all connections on one of them.
        options=["--reuse-port"],
        name="django",
    )
    with server:
        yield Service((server,), (_make_load("create", key, 201), _make_load("refuse", wrong, 403)))


def _make_load(name: str, key: str, status: int) -> Load:
    return Load(name, "/invites", status, method="POST", headers={"Authorization": f"Api-Key {key}"})


def _make_key(folder: Path, env: dict[str, str]) -> str:
    argv = [str(ENVIRONMENT.python), "-m", "tests.bench.django_site.make_key"]
    run = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    lines = run.stdout.split()
    if run.returncode != 0 or not lines:
        raise ServerFailed(f"the Django site: exit {run.returncode}\n{run.stderr}")
    return lines[-1]
