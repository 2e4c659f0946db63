"""gunicorn, set up for this app."""

from __future__ import annotations

import os
from typing import Any, Final

from gunicorn.app.base import BaseApplication

from invites_wsgi.app import create_app
from invites_wsgi.config import Settings
from invites_wsgi.gunicorn_logs import Logger

__all__ = ["Server"]

GRACE_SECONDS: Final = 30
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 (gunicorn makes an unlinked file in it)


class Server(BaseApplication):
    """Serves the app until it is told to stop. Workers are forked, and each makes its own app afterwards."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; `run` starts it."""
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn what to do; no file and no environment variable of its own has a say."""
        settings = self._settings
        chosen: dict[str, Any] = {
            "bind": settings.listen,
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": "gthread",
            "logger_class": Logger,
            "loglevel": settings.log_level,
            "errorlog": "-",
            "accesslog": None,
            # Everybody who reaches that socket could reload or stop the service.
            "control_socket_disable": True,
            # The app counts the proxies itself, from the right.
            "forwarded_allow_ips": "",
            "graceful_timeout": GRACE_SECONDS,
            "keepalive": 15,
            # Without it one worker can win the race for most connections, and the rate falls by half. A Unix socket
            # cannot be shared that way.
            "reuse_port": not settings.listen.startswith("unix:"),
            # For a Unix socket: the proxy connects as a member of the group, and nobody else can forge its headers.
            "umask": 0o007,
            "proc_name": "invites-api",
        }
        # A heartbeat on a slow disk lets the arbiter take a healthy worker for a hung one.
        if os.path.isdir(SHARED_MEMORY) and os.access(SHARED_MEMORY, os.W_OK):
            chosen["worker_tmp_dir"] = SHARED_MEMORY
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Make the app, in the worker."""
        return create_app(self._settings)
