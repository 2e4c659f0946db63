"""gunicorn, set up for this app."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from gunicorn.app.base import BaseApplication

from invites_core import InvitesError
from invites_wsgi.app import create_app
from invites_wsgi.config import Settings, SettingsError
from invites_wsgi.gunicorn_logs import Logger
from invites_wsgi.gunicorn_processes import Arbiter, GreenletWorker, ThreadWorker, lend_listener
from invites_wsgi.logs import configure_logging
from invites_wsgi.metrics_server import MetricsProcess

__all__ = ["Server"]

GRACE_SECONDS: Final = 30
MAX_CONNECTIONS: Final = 1000
ANSWERED_TOGETHER: Final = 64
"""Takes the place of threads where requests have none: half of them may wait for a hash, a second at the most."""
OTHER_FILES: Final = 128
"""The descriptors that a worker needs for other things than connections: its database, most of all."""
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 (gunicorn makes an unlinked file in it)

_log = logging.getLogger("invites_wsgi.server")


class Server(BaseApplication):
    """Serves the app until it is told to stop. Workers are forked, and each makes its own app afterwards.

    SIGHUP reads the settings anew and replaces the workers; SIGTERM ends it. Neither loses a request.
    """

    def __init__(self, settings: Settings, load_again: Callable[[], Settings]) -> None:
        """Take the settings; `run` starts it.

        Args:
            settings: What it is set to at the start.
            load_again: Gives the settings for a reload, or raises SettingsError or InvitesError where no worker could
                start with them.
        """
        self._settings = settings
        self._load_again = load_again
        super().__init__()

    def run(self) -> None:
        """Serve, and with it, where the settings have a place for them, the metrics; this ends with SystemExit.

        Raises:
            OSError: The metrics cannot be had there.
        """
        if self._settings.metrics_listen is None:
            Arbiter(self).run()
            return
        process = MetricsProcess(self._settings.metrics_listen)
        process.start()
        # Read by prometheus-client when the workers import it, which they do after the fork.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = process.folder
        try:
            Arbiter(self).run()
        finally:
            process.stop()

    def renew(self) -> bool:
        """Take the settings as they are now, and tell whether workers can start with them; if not, the log says why."""
        old = self._settings
        try:
            new = self._load_again()
        except (SettingsError, InvitesError) as error:
            _log.error("not reloaded, the service goes on as before: %s", error)
            return False
        if (new.listen, new.workers, new.metrics_listen) != (old.listen, old.workers, old.metrics_listen):
            _log.warning(
                "http.listen, http.metrics_listen and http.workers stay as they were until the service is restarted"
            )
        self._settings = replace(new, listen=old.listen, workers=old.workers, metrics_listen=old.metrics_listen)
        configure_logging(new.log_format, new.log_level)
        return True

    def load_config(self) -> None:
        """Tell gunicorn what to do; no file and no environment variable of its own has a say."""
        settings = self._settings
        chosen: dict[str, Any] = {
            "bind": settings.listen,
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": GreenletWorker if _waits_well(settings) else ThreadWorker,
            "worker_connections": _find_most_connections(),
            "pre_fork": lend_listener,
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
        settings = self._settings
        if _waits_well(settings):
            settings = replace(settings, threads=max(settings.threads, ANSWERED_TOGETHER))
        return create_app(settings)


def _waits_well(settings: Settings) -> bool:
    """Whether a request waits for nothing but what `invites_core.waiting` knows of; other stores hold up a thread."""
    return all(
        url.partition(":")[0] in ("sqlite", "postgresql", "postgres")
        for url in (settings.database, settings.invites)
        if url is not None
    )


def _find_most_connections() -> int:
    """Return how many connections a worker may have: so many that descriptors are left for the database."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if limit == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, limit - OTHER_FILES))
