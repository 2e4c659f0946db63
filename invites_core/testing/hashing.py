"""Hashing that costs next to nothing."""

from __future__ import annotations

from invites_core.hashing import SecretHasher

__all__ = ["cheap_hasher"]


def cheap_hasher() -> SecretHasher:
    """Return a hasher that does all that the product's does, with hashes that cost next to nothing.

    It is for tests alone: what it has hashed resists nobody.
    """
    return SecretHasher(time_cost=1, memory_kib=8)
