"""Free texts that people give."""

from __future__ import annotations

import pytest
from hypothesis import given

from invites_core.errors import InvalidRequest
from invites_core.text import check_text
from tests.helpers import texts


@given(texts)
def test_text_is_kept_as_it_came(text: str) -> None:
    """Any Unicode without NUL is taken, unchanged."""
    assert check_text("name", text, max_length=60) == text


def test_no_text_stays_none() -> None:
    """None is no text, and no error."""
    assert check_text("name", None, max_length=1) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 256, id="too-long"),
        pytest.param("a\0b", id="nul"),
        pytest.param("a\ud800b", id="half-of-a-surrogate-pair"),
        pytest.param("a\udfff", id="other-half"),
        pytest.param("caf\udce9", id="byte-that-was-not-utf-8"),
        pytest.param(7, id="number"),
        pytest.param(b"bytes", id="bytes"),
    ],
)
def test_what_cannot_be_stored_everywhere_is_refused(text: str) -> None:
    """A text that some store could not keep is an InvalidRequest that names the field and can be printed."""
    with pytest.raises(InvalidRequest) as caught:
        check_text("name", text, max_length=255)
    assert caught.value.field == "name"
    str(caught.value).encode()


def test_length_is_counted_in_characters() -> None:
    """The bound is in characters, not in bytes."""
    assert check_text("name", "🗝" * 255, max_length=255) == "🗝" * 255
