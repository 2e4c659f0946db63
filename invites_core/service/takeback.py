"""Taking back a key together with all that it made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from invites_core.errors import KeyUnknown
from invites_core.service.invites import Invites
from invites_core.service.keys import ApiKeys

__all__ = ["delete_key_with_invites"]

REQUEST_SECONDS: Final = 30.0


def delete_key_with_invites(
    keys: ApiKeys, invites: Invites, host: str, key_id: str, *, by: str, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Delete a key and take back every pending invite that it made, whatever runs beside it.

    Where keys and invites lie in one store, no invite of the key can appear after the deletion. Where they lie in two,
    a request that had passed its check may still add one, so there is a second sweep after the time limit of a
    request. A run that was cut short can be repeated: it sweeps although the key is gone.

    Args:
        keys: The keys.
        invites: The invites.
        host: The key's host, in any spelling.
        key_id: The key.
        by: Who does it.
        sleep: Waits for so many seconds.

    Returns:
        How many invites this call took back.

    Raises:
        InvalidHost: Not a host name.
        KeyUnknown: This host has no such key, and no key of this id was ever deleted.
    """
    try:
        keys.delete(host, key_id)
    except KeyUnknown:
        if keys.find_deletion(key_id) is None:
            raise
    revoked = invites.revoke_from(host, key_id, by=by)
    if not invites.share_store_with_keys:
        sleep(REQUEST_SECONDS)
        revoked += invites.revoke_from(host, key_id, by=by)
    return revoked
