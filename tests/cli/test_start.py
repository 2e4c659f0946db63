"""What the command loads before it does anything."""

from __future__ import annotations

import subprocess
import sys


def test_the_command_starts_without_what_only_the_service_needs() -> None:
    """Neither Werkzeug nor the page's libraries are loaded for a command that serves nothing."""
    code = (
        "import sys, invites_wsgi.cli.main;"
        "print(*{'werkzeug', 'jinja2', 'babel', 'segno', 'gunicorn', 'prometheus_client'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "\n"


def test_the_package_still_gives_the_app() -> None:
    """What the package names can be imported from it, and nothing else can."""
    import invites_wsgi

    assert {name for name in invites_wsgi.__all__ if hasattr(invites_wsgi, name)} == set(invites_wsgi.__all__)
    assert not hasattr(invites_wsgi, "application")
