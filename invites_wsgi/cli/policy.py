"""The options that say what a key may make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import click

from invites_core import KeyPolicy
from invites_core.invites import KINDS
from invites_core.keys import SCOPES
from invites_wsgi.cli.values import ChoicesType, DurationType, QuotaType, UsesType

__all__ = ["apply_policy_options", "policy_options"]

F = TypeVar("F", bound=Callable[..., Any])

_SCOPES: Final = sorted(SCOPES)
_KINDS: Final = sorted(KINDS)

_OPTIONS: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (
        ("--scope", "scopes"),
        {"type": ChoicesType(_SCOPES), "metavar": "WORDS", "help": f"What it may do: {','.join(_SCOPES)}."},
    ),
    (
        ("--kind", "kinds"),
        {"type": ChoicesType(_KINDS), "metavar": "WORDS", "help": f"Kinds of invites: {','.join(_KINDS)}."},
    ),
    (
        ("--quota", "quota"),
        {"type": QuotaType(), "metavar": "N/DURATION", "help": "Invites a period, such as 100/1d, or none."},
    ),
    (
        ("--max-uses", "max_uses"),
        {"type": UsesType(), "metavar": "N", "help": "The most uses of an invite, or unlimited."},
    ),
    (
        ("--max-expiry", "max_expiry"),
        {
            "type": DurationType(never=True),
            "metavar": "DURATION",
            "help": "The longest lifetime of an invite, or never for no bound.",
        },
    ),
    (("--group", "groups"), {"multiple": True, "metavar": "NAME", "help": "A group that it may give; repeatable."}),
    (("--role", "roles"), {"multiple": True, "metavar": "NAME", "help": "A role that it may give; repeatable."}),
    (
        ("--allow-username/--no-allow-username", "allow_username"),
        {"default": None, "help": "Whether its invites may name an account."},
    ),
    (
        ("--all-invites/--no-all-invites", "all_invites"),
        {"default": None, "help": "Whether it lists all invites of its host, not only its own."},
    ),
    (
        ("--header-only/--no-header-only", "header_only"),
        {"default": None, "help": "Whether it is refused as ?key= and taken in the header only."},
    ),
)


def policy_options(command: F) -> F:
    """Add the options to a command, which gets them all as keyword arguments."""
    for declarations, attributes in reversed(_OPTIONS):
        command = click.option(*declarations, **attributes)(command)
    return command


def apply_policy_options(policy: KeyPolicy, ctx: click.Context, options: Mapping[str, Any]) -> KeyPolicy:
    """Return a policy with what was said on the command line, and nothing else, changed.

    A group or role that is the empty text takes all of them away.
    """
    said = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    for name in ("scopes", "kinds", "groups", "roles"):
        if name in said:
            said[name] = frozenset(said[name]) - {""}
    return replace(policy, **said)
