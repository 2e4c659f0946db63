"""The WSGI adapter: HTTP, settings, logs and the command around `invites_core`."""

from typing import TYPE_CHECKING

from invites_wsgi.config import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from invites_wsgi.app import App, create_app

__all__ = ["App", "Settings", "SettingsError", "create_app", "load_settings"]


def __getattr__(name: str) -> object:
    # The command starts in half the time without Werkzeug and the page, which most of its subcommands have no use for.
    if name not in ("App", "create_app"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from invites_wsgi import app

    return getattr(app, name)
