"""The ``invites-api`` command."""

from invites_wsgi.cli.main import main

__all__ = ["main"]
