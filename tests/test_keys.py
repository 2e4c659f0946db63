"""API keys: the form ID/SECRET, the records, and what a key may make."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest
from hypothesis import assume, given, strategies as st

from invites_core.errors import InvalidKey, InvalidRequest
from invites_core.keys import (
    DEFAULT_POLICY,
    IssuedKey,
    KeyPolicy,
    PreviousSecret,
    Quota,
    format_key,
    generate_key_id,
    generate_secret,
    parse_key,
)
from tests.helpers import NOON, make_key, quotas

base64url = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=254)


@given(key_id=base64url, secret=base64url)
def test_formatted_key_parses_the_same(key_id: str, secret: str) -> None:
    """Any id and secret of base64url that fit into 255 characters come back from their combined form."""
    assume(len(key_id) + 1 + len(secret) <= 255)
    assert parse_key(format_key(key_id, secret)) == (key_id, secret)


@given(st.text() | st.builds("{}/{}".format, base64url, st.text()) | st.builds("{}/{}".format, st.text(), base64url))
def test_no_text_is_another_error(text: str) -> None:
    """Whatever the text, the answer is an id and a secret, or InvalidKey."""
    try:
        key_id, secret = parse_key(text)
    except InvalidKey as error:
        assert error.reason == "malformed"
        assert error.key_id is None
    else:
        assert format_key(key_id, secret) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param(
            "HTwALnKL/73UUylA-2ZJbu9x1XMATuIbjWpip8ow1",
            ("HTwALnKL", "73UUylA-2ZJbu9x1XMATuIbjWpip8ow1"),
            id="8-and-32",
        ),
        pytest.param("-LihiCNf28-X/" + "s" * 36, ("-LihiCNf28-X", "s" * 36), id="12-and-36"),
        pytest.param("a/b", ("a", "b"), id="shortest"),
        pytest.param("i" * 127 + "/" + "s" * 127, ("i" * 127, "s" * 127), id="longest"),
    ],
)
def test_length_is_never_asked_for(text: str, parts: tuple[str, str]) -> None:
    """Keys of every length up to 255 characters are taken apart: imported ones are longer than ours."""
    assert parse_key(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("/", id="slash"),
        pytest.param("HTwALnKL", id="no-slash"),
        pytest.param("HTwALnKL/", id="no-secret"),
        pytest.param("/secret", id="no-id"),
        pytest.param("a/b/c", id="slash-in-the-secret"),
        pytest.param("a//b", id="two-slashes"),
        pytest.param("a/b=", id="padding"),
        pytest.param("a/b+c", id="base64-of-the-other-alphabet"),
        pytest.param("a/b ", id="space"),
        pytest.param("a/b\n", id="newline"),
        pytest.param("a/ь", id="letter-of-another-script"),
        pytest.param("a/b\ud800", id="surrogate"),
        pytest.param("i" * 128 + "/" + "s" * 127, id="256-characters"),
        pytest.param("a/" + "b" * 1_000_000, id="a-million-characters"),
    ],
)
def test_malformed_key_is_refused(text: str) -> None:
    """What is not two parts of base64url with a slash between is InvalidKey, and no part of it is in the error."""
    with pytest.raises(InvalidKey) as caught:
        parse_key(text)
    assert caught.value.reason == "malformed"
    assert str(caught.value) == "the API key is not valid"


def test_generated_parts_have_the_documented_form() -> None:
    """An id has 8 characters of base64url, a secret 32; no id begins with a hyphen, and none comes twice."""
    ids = [generate_key_id() for _ in range(2_000)]
    secrets = [generate_secret() for _ in range(200)]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{7}", key_id) for key_id in ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", secret) for secret in secrets)
    assert len(set(ids)) == len(ids)
    assert len(set(secrets)) == len(secrets)


class TestRecords:
    """ApiKey and what belongs to it."""

    def test_repr_shows_no_hash_and_no_tag(self) -> None:
        """Nothing that was made from a secret is in the repr of a key."""
        previous = PreviousSecret(secret_hash="old-canary", tag=b"old-canary", valid_until=NOON)
        shown = repr(make_key(secret_hash="hash-canary", tag=b"tag-canary", previous=previous))
        assert "canary" not in shown
        assert "My test key" in shown

    def test_repr_of_an_issued_key_shows_no_secret(self) -> None:
        """The secret is in `combined`, and in no repr."""
        issued = IssuedKey(make_key(id="HTwALnKL"), "secret-canary")
        assert issued.combined == "HTwALnKL/secret-canary"
        assert "canary" not in repr(issued)
        assert "canary" not in str(issued)

    def test_key_has_no_place_for_a_secret(self) -> None:
        """A stored key holds no secret, and cannot be given one."""
        key = make_key()
        assert not hasattr(key, "secret")
        with pytest.raises((AttributeError, TypeError)):
            key.secret = "x"  # type: ignore[attr-defined]  # the point of the test

    def test_records_cannot_be_changed(self) -> None:
        """A record is a value."""
        with pytest.raises(FrozenInstanceError):
            make_key().host = "example.org"  # type: ignore[misc]  # the point of the test

    def test_source_is_written_as_prosody_writes_it(self) -> None:
        """The source of a key's invites is api/token/ID."""
        assert make_key(id="HTwALnKL").source == "api/token/HTwALnKL"


class TestPolicy:
    """KeyPolicy and Quota."""

    def test_default_is_what_a_prosody_key_can(self) -> None:
        """Without being told a key makes plain single-use register invites, and does nothing else."""
        expected = KeyPolicy(
            scopes=frozenset({"create"}),
            kinds=frozenset({"register"}),
            groups=frozenset(),
            roles=frozenset(),
            allow_username=False,
            max_expiry=None,
            max_uses=1,
            quota=None,
            all_invites=False,
            header_only=False,
        )
        assert KeyPolicy() == expected
        assert expected == DEFAULT_POLICY

    @given(quotas)
    def test_written_quota_reads_the_same(self, quota: Quota) -> None:
        """Reading what was written gives the same quota."""
        assert Quota.parse(str(quota)) == quota

    @pytest.mark.parametrize(
        ("text", "quota"),
        [
            pytest.param("100/1d", Quota(100, timedelta(days=1)), id="a-day"),
            pytest.param("1/1s", Quota(1, timedelta(seconds=1)), id="least"),
            pytest.param("999999999/52w", Quota(999_999_999, timedelta(weeks=52)), id="most"),
        ],
    )
    def test_quota_is_a_count_and_a_period(self, text: str, quota: Quota) -> None:
        """A quota is read as what people mean by it."""
        assert Quota.parse(text) == quota

    @pytest.mark.parametrize("text", ["", "/", "100", "100/", "/1d", "0/1d", "-1/1d", "1/0s", "1.5/1d", "1/1", "1/d",
                                      "1/1d/1d", " 1/1d", "1 / 1d", "٣/1d", "1000000000/1d", "1/1d\n"])  # fmt: skip
    def test_other_quotas_are_refused(self, text: str) -> None:
        """What is not a count and a period is an InvalidRequest that names the field."""
        with pytest.raises(InvalidRequest) as caught:
            Quota.parse(text)
        assert caught.value.field == "quota"
        assert "\n" not in str(caught.value)

    @given(st.text() | st.builds("{}/{}".format, st.integers(), st.text()))
    def test_no_text_is_another_error(self, text: str) -> None:
        """Whatever the text, the answer is a quota or InvalidRequest."""
        try:
            assert Quota.parse(text).count >= 1
        except InvalidRequest:
            pass
