"""The settings: SQLite as Django advises it for production, with every commit synced."""

from __future__ import annotations

import os
import secrets

SECRET_KEY = secrets.token_urlsafe()
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.bench.django_site.views"
INSTALLED_APPS = ["rest_framework", "rest_framework_api_key", "tests.bench.django_site"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["INVITES_BENCH_DATABASE"],
        # Each thread keeps its connection.
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            # FULL syncs the WAL at every commit; NORMAL, which is often seen with WAL, does not.
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;",
        },
    }
}
# No users and sessions, whose middleware and queries would cost time; keys are all that is checked.
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
}
