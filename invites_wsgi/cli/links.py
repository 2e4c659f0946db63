"""Where the links of a host point, and what must answer there, for people."""

from __future__ import annotations

from invites_wsgi.config import Settings

__all__ = ["describe_link"]


def describe_link(settings: Settings, host: str) -> str:
    """Return one sentence on where the invites of a normalised host will point and what must answer there."""
    template = settings.hosts.get_landing_template(host)
    if not template:
        return f"Invites of {host} are xmpp: links, which open in a chat app; no page is needed."
    return (
        f"Invites of {host} will point to {template.replace('{token}', 'TOKEN')}; this address must show the page for"
        f" the invite, as {settings.landing_path} of this service does."
    )
