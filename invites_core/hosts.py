"""Host names and user names, normalised as XMPP servers key them, and what a host is set to."""

from __future__ import annotations

import encodings.idna
import functools
import re
import stringprep
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from invites_core.errors import InvalidHost, InvalidRequest

__all__ = ["HostSettings", "Hosts", "host_to_ascii", "normalize_host", "normalize_username"]

_DOTS: Final = re.compile("[.\u3002\uff0e\uff61]")
"""What IDNA takes for a dot (RFC 3490, section 3.1)."""

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

DEFAULT_EXPIRY: Final = timedelta(days=7)
RESET_EXPIRY: Final = timedelta(days=1)


def _label_to_ascii(label: str) -> str:
    """Return the A-label of one label (RFC 3490 ToASCII with UseSTD3ASCIIRules), in lower case."""
    try:
        ascii_label = encodings.idna.ToASCII(label).decode("ascii").lower()
    except UnicodeError as error:
        raise InvalidHost from error
    if not _LABEL.fullmatch(ascii_label):
        raise InvalidHost
    return ascii_label


def normalize_host(name: str) -> str:
    """Return a host name in the form that it is stored in: nameprepped Unicode, as Prosody keys its hosts.

    Args:
        name: A host name in any of its spellings: upper case, A-labels (``xn--…``), a trailing dot.

    Returns:
        The one spelling that this library uses inside.

    Raises:
        InvalidHost: It is not a host name (RFC 3490 with STD 3's rules; RFC 7622 for the trailing dot).
    """
    if not isinstance(name, str) or len(name) > 1023:
        raise InvalidHost
    labels = _DOTS.split(name)
    if len(labels) > 1 and not labels[-1]:
        labels.pop()
    ascii_labels = [_label_to_ascii(label) for label in labels]
    if len(".".join(ascii_labels)) > 253:
        raise InvalidHost
    try:
        return ".".join(encodings.idna.ToUnicode(label) for label in ascii_labels)
    except UnicodeError as error:
        raise InvalidHost from error


@functools.lru_cache(maxsize=1024)
def host_to_ascii(host: str) -> str:
    """Return the A-label form of a normalised host, as it stands in ``https:`` URLs."""
    return ".".join(_label_to_ascii(label) for label in host.split("."))


_NODEPREP_PROHIBITED: Final = (
    stringprep.in_table_c11_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
    "\"&'/:<>@".__contains__,
)


def normalize_username(name: str, *, field: str = "username") -> str:
    """Return the user name (the part of a JID before the @) as an XMPP server keys it: nodeprep, RFC 3920 appendix A.

    Args:
        name: A user name as somebody typed it.
        field: What to call it in the error.

    Raises:
        InvalidRequest: It is empty, longer than 1,023 bytes, or holds what a user name must not.
    """
    refused = InvalidRequest(field, "is not a valid user name")
    if not isinstance(name, str) or len(name) > 1023:
        raise refused
    mapped = "".join(stringprep.map_table_b2(char) for char in name if not stringprep.in_table_b1(char))
    # Stringprep is defined on Unicode 3.2: table A.1 must see later characters before anything maps them away.
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not prepared or any(prohibits(char) for char in prepared for prohibits in _NODEPREP_PROHIBITED):
        raise refused
    # RFC 3454, section 6: text that holds right-to-left characters begins and ends with one, and holds no others.
    if any(stringprep.in_table_d1(char) for char in prepared):
        ends_right_to_left = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if not ends_right_to_left or any(stringprep.in_table_d2(char) for char in prepared):
            raise refused
    if len(prepared.encode()) > 1023:
        raise refused
    return prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What a host is set to.

    Attributes:
        landing_page: Where an invite's link points: a URL in which ``{token}`` is replaced; "" for none (the invite's
            ``xmpp:`` URI is its link); None for the default, ``https://HOST/invite?{token}``.
        site_name: What people call the service; None for the host's own name.
        invite_expiry: How long an invite is valid that does not say.
    """

    landing_page: str | None = None
    site_name: str | None = None
    invite_expiry: timedelta = DEFAULT_EXPIRY


class Hosts:
    """The hosts that are served, each with its settings; safe to share, never changes."""

    def __init__(self, settings: Mapping[str, HostSettings] | None = None) -> None:
        """Take the hosts that are served.

        Args:
            settings: Host name to settings. None or empty: every valid host name is served, with the defaults.

        Raises:
            InvalidHost: A name is not a host name, or two names are the same host.
        """
        served: dict[str, HostSettings] = {}
        for name, host_settings in (settings or {}).items():
            host = normalize_host(name)
            if host in served:
                raise InvalidHost(f"{name} is there twice")
            served[host] = host_settings
        self._served: Mapping[str, HostSettings] = MappingProxyType(served)
        self._default = HostSettings()

    @property
    def listed(self) -> Iterable[str]:
        """The hosts that the settings name; none where every valid host is served."""
        return self._served.keys()

    def serves(self, host: str) -> bool:
        """Tell whether a normalised host is served here."""
        return not self._served or host in self._served

    def normalize_served(self, name: str) -> str:
        """Return the normalised name of a host that is served here.

        Raises:
            InvalidHost: It is not a host name, or not a host that is served.
        """
        host = normalize_host(name)
        if not self.serves(host):
            raise InvalidHost(f"please supply a valid host: {host} is not among those in the settings")
        return host

    def get(self, host: str) -> HostSettings:
        """Return what a normalised host is set to; the defaults for one that is not listed."""
        return self._served.get(host, self._default)

    def get_landing_template(self, host: str) -> str:
        """Return the URL of a normalised host's landing page with ``{token}`` in it, or "" where it has none."""
        template = self.get(host).landing_page
        return f"https://{host_to_ascii(host)}/invite?{{token}}" if template is None else template

    def get_invite_expiry(self, host: str, kind: str) -> timedelta:
        """Return how long an invite of this kind is valid on a normalised host unless it says otherwise."""
        expiry = self.get(host).invite_expiry
        return min(expiry, RESET_EXPIRY) if kind == "reset" else expiry
