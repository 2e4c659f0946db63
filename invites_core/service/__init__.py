"""ApiKeys and Invites: the only place with rules."""

from invites_core.service.creation import InviteFields, InviteRequest
from invites_core.service.invites import Invites
from invites_core.service.keys import ApiKeys
from invites_core.service.redeeming import Redeemed
from invites_core.service.takeback import delete_key_with_invites

__all__ = ["ApiKeys", "InviteFields", "InviteRequest", "Invites", "Redeemed", "delete_key_with_invites"]
