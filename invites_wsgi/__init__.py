"""The WSGI adapter: HTTP, settings, logs and the command around `invites_core`."""

from invites_wsgi.app import App, create_app
from invites_wsgi.config import Settings, SettingsError, load_settings

__all__ = ["App", "Settings", "SettingsError", "create_app", "load_settings"]
