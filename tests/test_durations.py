"""Durations: a whole number with a unit, never a bare number."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from invites_core.durations import MAX_DURATION, format_duration, parse_duration
from invites_core.errors import InvalidRequest
from tests.helpers import durations


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        pytest.param("1s", timedelta(seconds=1), id="second"),
        pytest.param("90s", timedelta(seconds=90), id="seconds"),
        pytest.param("15min", timedelta(minutes=15), id="minutes"),
        pytest.param("24h", timedelta(hours=24), id="hours"),
        pytest.param("7d", timedelta(days=7), id="days"),
        pytest.param("2w", timedelta(days=14), id="weeks"),
        pytest.param("007d", timedelta(days=7), id="leading-zeros"),
        pytest.param("36500d", MAX_DURATION, id="longest"),
    ],
)
def test_duration_is_a_number_and_a_unit(text: str, duration: timedelta) -> None:
    """A duration is read as what people mean by it."""
    assert parse_duration(text, field="expires_in") == duration


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("7", id="bare-number"),
        pytest.param("d", id="bare-unit"),
        pytest.param("7m", id="m-is-month-or-minute"),
        pytest.param("7D", id="upper-case"),
        pytest.param("7 d", id="space"),
        pytest.param(" 7d", id="space-before"),
        pytest.param("7d\n", id="newline-after"),
        pytest.param("-7d", id="negative"),
        pytest.param("+7d", id="sign"),
        pytest.param("1.5h", id="fraction"),
        pytest.param("1h30min", id="two-units"),
        pytest.param("٧d", id="digits-of-another-script"),
        pytest.param("0s", id="nothing"),
        pytest.param("0w", id="nothing-in-weeks"),
        pytest.param("36501d", id="over-a-century"),
        pytest.param("999999999999w", id="beyond-every-calendar"),
        pytest.param("9" * 5_000 + "d", id="beyond-every-integer"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """What is not a duration is an InvalidRequest that names the field, and shows little of the text."""
    with pytest.raises(InvalidRequest) as caught:
        parse_duration(text, field="expires_in")
    assert caught.value.field == "expires_in"
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


@given(st.text())
def test_no_text_is_another_error(text: str) -> None:
    """Whatever the text, the answer is a duration in range or InvalidRequest."""
    try:
        duration = parse_duration(text, field="quota")
    except InvalidRequest:
        return
    assert timedelta(seconds=1) <= duration <= MAX_DURATION


@given(durations)
def test_formatted_duration_reads_the_same(duration: timedelta) -> None:
    """Reading what was written gives the same duration."""
    assert parse_duration(format_duration(duration), field="x") == duration


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        pytest.param(timedelta(days=7), "7d", id="a-week-is-7d"),
        pytest.param(timedelta(days=14), "14d", id="weeks-are-days"),
        pytest.param(timedelta(hours=36), "36h", id="hours"),
        pytest.param(timedelta(minutes=90), "90min", id="minutes"),
        pytest.param(timedelta(seconds=61), "61s", id="seconds"),
    ],
)
def test_duration_is_written_in_the_largest_unit_that_fits(duration: timedelta, text: str) -> None:
    """A duration is written as people write it."""
    assert format_duration(duration) == text
