"""Invites: the record, its state, its token, its URI and its link."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from invites_core.errors import InvalidRequest
from invites_core.invites import (
    KINDS,
    Invite,
    check_landing_template,
    format_landing_page,
    generate_token,
    is_token,
)
from tests.helpers import NOON, make_invite

SECOND = timedelta(seconds=1)
TOKEN = "Zt3pB7Wq9LxKf2Ra-0_mVdYh"


class TestState:
    """Used, else revoked, else expired, else pending."""

    @pytest.mark.parametrize(
        ("invite", "state"),
        [
            pytest.param(make_invite(), "pending", id="new"),
            pytest.param(make_invite(expires_at=NOON), "pending", id="last-second"),
            pytest.param(make_invite(expires_at=NOON - SECOND), "expired", id="a-second-later"),
            pytest.param(make_invite(expires_at=None), "pending", id="never-expires"),
            pytest.param(make_invite(uses=1), "used", id="used"),
            pytest.param(make_invite(max_uses=3, uses=2), "pending", id="one-use-left"),
            pytest.param(make_invite(max_uses=3, uses=3), "used", id="no-use-left"),
            pytest.param(make_invite(max_uses=None, uses=1_000), "pending", id="uses-without-limit"),
            pytest.param(make_invite(revoked_by="command"), "revoked", id="revoked"),
            pytest.param(make_invite(revoked_by="command", expires_at=NOON - SECOND), "revoked", id="then-expired"),
            pytest.param(make_invite(uses=1, revoked_by="command"), "used", id="used-goes-before-revoked"),
            pytest.param(make_invite(uses=1, expires_at=NOON - SECOND), "used", id="used-goes-before-expired"),
        ],
    )
    def test_state(self, invite: Invite, state: str) -> None:
        """The state follows from the record and the time."""
        assert invite.state_at(NOON) == state


class TestAddress:
    """What an invite is about, and its xmpp: URI."""

    @pytest.mark.parametrize(
        ("invite", "jid", "uri"),
        [
            pytest.param(
                make_invite(token=TOKEN), "example.com", f"xmpp:example.com?register;preauth={TOKEN}", id="register"
            ),
            pytest.param(
                make_invite(token=TOKEN, username="alice"),
                "alice@example.com",
                f"xmpp:alice@example.com?register;preauth={TOKEN}",
                id="register-a-name",
            ),
            pytest.param(
                make_invite(token=TOKEN, kind="reset", username="alice", registration=False),
                "alice@example.com",
                f"xmpp:alice@example.com?register;preauth={TOKEN}",
                id="reset",
            ),
            pytest.param(
                make_invite(token=TOKEN, kind="roster", username="alice", registration=False),
                "alice@example.com",
                f"xmpp:alice@example.com?roster;preauth={TOKEN}",
                id="contact",
            ),
            pytest.param(
                make_invite(token=TOKEN, kind="roster", username="alice", registration=True),
                "alice@example.com",
                f"xmpp:alice@example.com?roster;preauth={TOKEN};ibr=y",
                id="contact-that-may-register",
            ),
            pytest.param(
                make_invite(token=TOKEN, host="bücher.example"),
                "bücher.example",
                f"xmpp:b%C3%BCcher.example?register;preauth={TOKEN}",
                id="unicode-host",
            ),
            pytest.param(
                make_invite(token=TOKEN, username="żaneta;x?y#z%"),
                "żaneta;x?y#z%@example.com",
                f"xmpp:%C5%BCaneta%3Bx%3Fy%23z%25@example.com?register;preauth={TOKEN}",
                id="username-that-could-end-the-address",
            ),
        ],
    )
    def test_uri(self, invite: Invite, jid: str, uri: str) -> None:
        """The URI is as mod_invites writes it, in ASCII whatever the names are."""
        assert invite.jid == jid
        assert invite.uri == uri
        assert invite.uri.isascii()

    @given(username=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_no_username_changes_what_the_uri_does(self, username: str | None) -> None:
        """Nothing in a user name can end the address, or add an action of its own."""
        uri = make_invite(token=TOKEN, username=username).uri
        assert uri.isascii()
        assert uri.partition("?")[2] == f"register;preauth={TOKEN}"
        assert uri.count("?") == 1
        assert "#" not in uri


class TestToken:
    """Tokens."""

    def test_generated_token_has_the_documented_form(self) -> None:
        """A token has 24 characters of base64url, and none comes twice."""
        tokens = [generate_token() for _ in range(1_000)]
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{24}", token) for token in tokens)
        assert all(is_token(token) for token in tokens)
        assert len(set(tokens)) == len(tokens)

    @pytest.mark.parametrize(
        ("text", "is_one"),
        [
            pytest.param(TOKEN, True, id="ours"),
            pytest.param("a" * 16, True, id="imported"),
            pytest.param("a" * 255, True, id="longest"),
            pytest.param("a" * 15, False, id="short"),
            pytest.param("a" * 256, False, id="long"),
            pytest.param("", False, id="empty"),
            pytest.param(TOKEN + "\n", False, id="newline"),
            pytest.param(TOKEN[:-1] + "=", False, id="padding"),
            pytest.param(TOKEN[:-1] + "/", False, id="slash"),
            pytest.param(TOKEN[:-1] + "é", False, id="beyond-ascii"),
            pytest.param("a" * 15 + "\0", False, id="nul"),
        ],
    )
    def test_form_of_a_token(self, text: str, is_one: bool) -> None:
        """A token is 16 to 255 characters of base64url."""
        assert is_token(text) is is_one

    def test_repr_shows_no_token(self) -> None:
        """Who sees the repr of an invite cannot use it."""
        invite = make_invite(token=TOKEN, landing_page=f"https://example.com/invite?{TOKEN}")
        assert TOKEN not in repr(invite)
        assert TOKEN not in str(invite)
        assert "example.com" in repr(invite)


class TestLandingPage:
    """Templates of landing pages."""

    @pytest.mark.parametrize(
        "template",
        [
            pytest.param("", id="none"),
            pytest.param("https://example.com/invite?{token}", id="query"),
            pytest.param("http://127.0.0.1:5280/invite?{token}", id="address-and-port"),
            pytest.param("HTTPS://example.com/{token}", id="upper-case"),
            pytest.param("https://example.com/#{token}", id="fragment"),
            pytest.param("https://{token}.example.com/{token}", id="twice"),
        ],
    )
    def test_url_with_a_place_for_the_token_is_taken(self, template: str) -> None:
        """A URL of the web in which the token has a place is a template, and "" is none."""
        check_landing_template(template)

    @pytest.mark.parametrize(
        "template",
        [
            pytest.param("https://example.com/invite", id="no-place"),
            pytest.param("https://example.com/{invite.token}", id="prosody's-placeholder"),
            pytest.param("https://example.com/{token}/{host}", id="another-placeholder"),
            pytest.param("https://example.com/{token", id="not-closed"),
            pytest.param("https://example.com/{{token}}", id="doubled"),
            pytest.param("javascript:alert('{token}')", id="javascript"),
            pytest.param("xmpp:example.com?{token}", id="xmpp"),
            pytest.param("/invite?{token}", id="relative"),
            pytest.param("//example.com/{token}", id="no-scheme"),
            pytest.param("https://", id="nothing-after-the-scheme"),
            pytest.param("https://example.com/ {token}", id="space"),
            pytest.param("https://example.com/{token}\r\nSet-Cookie: a=b", id="header-of-its-own"),
            pytest.param("https://example.com/{token}\n", id="newline"),
            pytest.param("https://bücher.example/{token}", id="beyond-ascii"),
            pytest.param(" ", id="blank"),
        ],
    )
    def test_other_templates_are_refused(self, template: str) -> None:
        """Anything else is an InvalidRequest that names the setting."""
        with pytest.raises(InvalidRequest) as caught:
            check_landing_template(template, field="hosts.landing_page")
        assert caught.value.field == "hosts.landing_page"

    def test_token_takes_its_place(self) -> None:
        """The link is the template with the token in every place for it."""
        invite = make_invite(token=TOKEN)
        assert (
            format_landing_page("https://example.com/invite?{token}", invite) == f"https://example.com/invite?{TOKEN}"
        )
        assert format_landing_page("http://{token}/{token}", invite) == f"http://{TOKEN}/{TOKEN}"

    def test_uri_is_the_link_where_there_is_no_page(self) -> None:
        """A host without a landing page has the xmpp: URI as its link."""
        invite = make_invite(token=TOKEN)
        assert format_landing_page("", invite) == invite.uri


def test_kinds() -> None:
    """There are three kinds of invites."""
    assert sorted(KINDS) == ["register", "reset", "roster"]
