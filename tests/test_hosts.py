"""Host names and user names: one spelling inside, whatever somebody typed."""

from __future__ import annotations

import unicodedata
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from invites_core.errors import InvalidHost, InvalidRequest
from invites_core.hosts import Hosts, HostSettings, host_to_ascii, normalize_host, normalize_username

hosts = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        pytest.param("example.com", "example.com", id="plain"),
        pytest.param("EXAMPLE.Com", "example.com", id="case"),
        pytest.param("example.com.", "example.com", id="trailing-dot"),
        pytest.param("localhost", "localhost", id="one-label"),
        pytest.param("bücher.example", "bücher.example", id="unicode"),
        pytest.param("BÜCHER.example", "bücher.example", id="unicode-case"),
        pytest.param("bu\u0308cher.example", "bücher.example", id="decomposed"),
        pytest.param("xn--bcher-kva.example", "bücher.example", id="a-label"),
        pytest.param("XN--BCHER-KVA.example", "bücher.example", id="a-label-upper-case"),
        pytest.param("faß.de", "fass.de", id="idna-2003-as-prosody"),
        pytest.param("ｅｘａｍｐｌｅ。com", "example.com", id="full-width"),
        pytest.param("ex\u00adample.com", "example.com", id="soft-hyphen"),
        pytest.param("a" * 63 + ".example", "a" * 63 + ".example", id="longest-label"),
        pytest.param("3com.example", "3com.example", id="digit-first"),
    ],
)
def test_host_has_one_spelling(name: str, host: str) -> None:
    """All spellings of a host name are stored as one."""
    assert normalize_host(name) == host


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param(".", id="dot"),
        pytest.param(".example.com", id="dot-first"),
        pytest.param("example..com", id="empty-label"),
        pytest.param("example.com..", id="two-trailing-dots"),
        pytest.param("exa mple.com", id="space"),
        pytest.param("example.com\n", id="newline"),
        pytest.param("example.com/path", id="slash"),
        pytest.param("user@example.com", id="address"),
        pytest.param("example.com:5280", id="port"),
        pytest.param("[::1]", id="ipv6"),
        pytest.param("under_score.example", id="underscore"),
        pytest.param("-example.com", id="hyphen-first"),
        pytest.param("example-.com", id="hyphen-last"),
        pytest.param("a" * 64 + ".com", id="long-label"),
        pytest.param(".".join(["a" * 60] * 5), id="long-name"),
        pytest.param("x" * 100_000, id="very-long"),
        pytest.param("xn--a", id="a-label-that-is-none"),
        pytest.param("xn--zca.de", id="a-label-of-idna-2008-alone"),
        pytest.param("a\u2024b.com", id="dot-that-is-a-compatibility-form"),
        pytest.param("\u00ad", id="nothing-left"),
        pytest.param("a\0b.com", id="nul"),
        pytest.param("\ud800.com", id="surrogate"),
        pytest.param(None, id="none"),
        pytest.param(b"example.com", id="bytes"),
    ],
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    """Anything else is InvalidHost, in the words that the command prints."""
    with pytest.raises(InvalidHost, match="^please supply a valid host$"):
        normalize_host(name)


@given(st.text() | hosts)
def test_normalised_host_stays_as_it_is(name: str) -> None:
    """Normalising what was normalised changes nothing, and its A-label form is the same host in ASCII."""
    try:
        host = normalize_host(name)
    except InvalidHost:
        return
    assert normalize_host(host) == host
    assert host_to_ascii(host).isascii()
    assert normalize_host(host_to_ascii(host)) == host
    assert len(host_to_ascii(host)) <= 253


@pytest.mark.parametrize(
    ("host", "ascii_form"),
    [
        pytest.param("example.com", "example.com", id="plain"),
        pytest.param("bücher.example", "xn--bcher-kva.example", id="unicode"),
    ],
)
def test_urls_hold_the_a_label(host: str, ascii_form: str) -> None:
    """In URLs of the web a host stands in ASCII."""
    assert host_to_ascii(host) == ascii_form


@pytest.mark.parametrize(
    ("name", "username"),
    [
        pytest.param("alice", "alice", id="plain"),
        pytest.param("ALICE", "alice", id="case"),
        pytest.param("Żaneta", "żaneta", id="unicode-case"),
        pytest.param("z\u0307aneta", "żaneta", id="decomposed"),
        pytest.param("ａlice", "alice", id="full-width"),
        pytest.param("al\u00adice", "alice", id="soft-hyphen"),
        pytest.param("straße", "strasse", id="sharp-s"),
        pytest.param("a.b-c_d+e", "a.b-c_d+e", id="punctuation"),
        pytest.param("مريم", "مريم", id="right-to-left"),
    ],
)
def test_username_has_one_spelling(name: str, username: str) -> None:
    """All spellings of a user name are one account."""
    assert normalize_username(name) == username


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("\u00ad", id="nothing-left"),
        pytest.param("a b", id="space"),
        pytest.param("a\u00a0b", id="no-break-space"),
        pytest.param("a@b", id="at"),
        pytest.param("a/b", id="slash"),
        pytest.param('a"b', id="quote"),
        pytest.param("a&b", id="ampersand"),
        pytest.param("a<b", id="less-than"),
        pytest.param("a\u2100b", id="slash-in-a-compatibility-form"),
        pytest.param("a\nb", id="newline"),
        pytest.param("a\0b", id="nul"),
        pytest.param("a\ud800", id="surrogate"),
        pytest.param("a\ue000", id="private-use"),
        pytest.param("a\u202eb", id="override"),
        pytest.param("aمريم", id="mixed-directions"),
        pytest.param("مريم1", id="right-to-left-that-ends-with-a-digit"),
        pytest.param("a\u0378b", id="unassigned"),
        pytest.param("\u1d2c", id="assigned-after-unicode-3-2"),
        pytest.param("x" * 1_024, id="long"),
        pytest.param("ż" * 512, id="long-in-bytes"),
        pytest.param(None, id="none"),
    ],
)
def test_what_is_no_username_is_refused(name: str) -> None:
    """Anything else is an InvalidRequest that names the field."""
    with pytest.raises(InvalidRequest) as caught:
        normalize_username(name, field="redeemer")
    assert caught.value.field == "redeemer"


@given(st.text())
def test_normalised_username_stays_as_it_is(name: str) -> None:
    """Normalising what was normalised changes nothing, so that two names are one account or never meet."""
    try:
        username = normalize_username(name)
    except InvalidRequest:
        return
    assert normalize_username(username) == username


def test_no_character_breaks_the_normal_form() -> None:
    """Whatever single character a user name holds that has another form, its normal form is stable."""
    characters = [chr(number) for number in (*range(0xD800), *range(0xE000, 0x30000))]
    for character in characters:
        if character.casefold() == character and unicodedata.is_normalized("NFKC", character):
            continue
        try:
            username = normalize_username(f"a{character}")
        except InvalidRequest:
            continue
        assert normalize_username(username) == username, hex(ord(character))


class TestHosts:
    """The hosts that are served."""

    def test_every_host_is_served_where_none_is_listed(self) -> None:
        """Without settings any valid host name is taken, with the defaults."""
        hosts = Hosts()
        assert hosts.serves("example.com")
        assert hosts.normalize_served("EXAMPLE.org") == "example.org"
        assert hosts.get("example.com") == HostSettings()
        assert list(hosts.listed) == []

    def test_listed_hosts_alone_are_served(self) -> None:
        """With settings every other host is InvalidHost."""
        hosts = Hosts({"Example.COM": HostSettings(site_name="Example")})
        assert list(hosts.listed) == ["example.com"]
        assert hosts.normalize_served("example.com.") == "example.com"
        assert hosts.get("example.com").site_name == "Example"
        assert not hosts.serves("example.org")
        with pytest.raises(InvalidHost, match="^please supply a valid host: example.org is not among those in the"):
            hosts.normalize_served("example.org")

    def test_host_is_listed_once(self) -> None:
        """Two spellings of one host in the settings are an error that names the second."""
        with pytest.raises(InvalidHost, match="xn--bcher-kva.example is there twice"):
            Hosts({"bücher.example": HostSettings(), "xn--bcher-kva.example": HostSettings()})

    def test_listed_name_is_a_host_name(self) -> None:
        """A name in the settings that is no host name is refused."""
        with pytest.raises(InvalidHost):
            Hosts({"not a host": HostSettings()})

    def test_settings_are_copied(self) -> None:
        """A later change of the mapping does not change what is served."""
        settings = {"example.com": HostSettings()}
        hosts = Hosts(settings)
        settings["example.org"] = HostSettings()
        assert not hosts.serves("example.org")

    @pytest.mark.parametrize(
        ("settings", "template"),
        [
            pytest.param(HostSettings(), "https://xn--bcher-kva.example/invite?{token}", id="default"),
            pytest.param(HostSettings(landing_page="https://x.example/{token}"), "https://x.example/{token}", id="own"),
            pytest.param(HostSettings(landing_page=""), "", id="none"),
        ],
    )
    def test_landing_template(self, settings: HostSettings, template: str) -> None:
        """A host's links point to itself by its A-label unless the settings say otherwise."""
        assert Hosts({"bücher.example": settings}).get_landing_template("bücher.example") == template

    @pytest.mark.parametrize(
        ("kind", "set_to", "expiry"),
        [
            pytest.param("register", None, timedelta(days=7), id="register"),
            pytest.param("roster", None, timedelta(days=7), id="roster"),
            pytest.param("reset", None, timedelta(days=1), id="reset"),
            pytest.param("register", timedelta(days=30), timedelta(days=30), id="register-longer"),
            pytest.param("reset", timedelta(days=30), timedelta(days=1), id="reset-never-longer"),
            pytest.param("reset", timedelta(hours=2), timedelta(hours=2), id="reset-shorter"),
        ],
    )
    def test_invite_expiry(self, kind: str, set_to: timedelta | None, expiry: timedelta) -> None:
        """An invite is valid for 7 days and a reset for 1 unless the host's settings say otherwise."""
        settings = HostSettings() if set_to is None else HostSettings(invite_expiry=set_to)
        assert Hosts({"example.com": settings}).get_invite_expiry("example.com", kind) == expiry
