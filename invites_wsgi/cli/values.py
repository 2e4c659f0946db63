"""Values of options, each read in one place; their errors name the option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from invites_core import NEVER, KeyUnknown, Quota
from invites_core.durations import parse_duration

__all__ = ["ChoicesType", "DurationType", "KeyIdType", "QuotaType", "TokenType", "UsesType"]


def _name(param: click.Parameter | None, otherwise: str) -> str:
    return param.opts[0] if param else otherwise


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


class DurationType(click.ParamType[timedelta]):
    """A duration such as ``90d``."""

    name = "duration"

    def __init__(self, *, never: bool = False) -> None:
        """Take also ``never``, as `NEVER`, if told to."""
        self._never = never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        if isinstance(value, timedelta):
            return value
        if self._never and value == "never":
            return NEVER
        return parse_duration(value, field=_name(param, "duration"))


class QuotaType(click.ParamType[Quota | None]):
    """A quota such as ``100/1d``, or ``none``."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Quota | None:
        """Read it."""
        if value is None or isinstance(value, Quota) or value == "none":
            return None if value == "none" else value
        return Quota.parse(value, field=_name(param, "quota"))


class UsesType(click.ParamType[int | None]):
    """A number of uses, or ``unlimited``."""

    name = "uses"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Read it."""
        if value is None or value == "unlimited":
            return None
        return int(click.IntRange(1, 2**31 - 1).convert(value, param, ctx))


class ChoicesType(click.ParamType[Sequence[str]]):
    """One or more words with commas between, such as ``create,read``."""

    name = "words"

    def __init__(self, choices: Sequence[str]) -> None:
        """Take the words that can be chosen."""
        self._choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Sequence[str]:
        """Read them."""
        if not isinstance(value, str):
            return list(value)
        words = [word.strip() for word in value.split(",")]
        for word in words:
            if word not in self._choices:
                self.fail(f"{word!r} is not one of {', '.join(self._choices)}", param, ctx)
        return words


class KeyIdType(click.ParamType[str]):
    """The id of a key. Bytes that are no text (the shell passes on any) are the id of no key."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is; no store can be asked for half of a surrogate pair."""
        text = str(value)
        if _has_surrogates(text):
            raise KeyUnknown
        return text


class TokenType(click.ParamType[str]):
    """The token of an invite, or ``-`` for a line on standard input: arguments can be seen by every user."""

    name = "token"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the token."""
        return sys.stdin.readline().strip() if value == "-" else str(value)
