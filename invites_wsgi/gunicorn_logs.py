"""A logger class for gunicorn that shows no secret, no token and no query."""

from __future__ import annotations

import logging
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger as GunicornLogger

from invites_wsgi.logs import CurrentFormatter, scrub_uncaught_errors

__all__ = ["Logger"]


class Logger(GunicornLogger):
    """gunicorn's logger, made safe; use it as ``--logger-class invites_wsgi.gunicorn_logs.Logger``.

    Its error log passes this package's formatter, which cuts out what could be a credential, malformed request
    lines whole; its access log, which prints the query and the Referer, is never written: the app has its own.
    """

    def setup(self, cfg: Config) -> None:
        """Set up the handlers as gunicorn does, each with our formatter; errors that nobody catches get the same."""
        super().setup(cfg)
        scrub_uncaught_errors()
        formatter = CurrentFormatter()
        for logger in (self.error_log, self.access_log):
            for handler in logger.handlers:
                handler.setFormatter(formatter)
        self.access_log.setLevel(logging.CRITICAL + 1)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write nothing: the app writes one line a request itself."""
