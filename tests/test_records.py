"""How records are written where a store has plain columns: stored formats, frozen here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from invites_core.errors import CorruptRecord
from invites_core.keys import DEFAULT_POLICY, NEVER, KeyPolicy, Quota
from invites_core.stores.records import (
    from_seconds,
    from_seconds_or_none,
    list_from_json,
    list_to_json,
    policy_from_json,
    policy_to_json,
    to_seconds,
    to_seconds_or_none,
)
from tests.helpers import FULL_POLICY, policies, texts, times

POLICIES = [
    pytest.param(
        DEFAULT_POLICY,
        '{"all_invites":false,"allow_username":false,"groups":[],"header_only":false,"kinds":["register"],'
        '"max_expiry":null,"max_uses":1,"quota":null,"roles":[],"scopes":["create"]}',
        id="default",
    ),
    pytest.param(
        FULL_POLICY,
        '{"all_invites":true,"allow_username":true,"groups":["Gäste","staff"],"header_only":true,'
        '"kinds":["register","reset","roster"],"max_expiry":2592000,"max_uses":10,"quota":[100,86400],'
        '"roles":["prosody:admin"],"scopes":["create","read","redeem","revoke"]}',
        id="full",
    ),
    pytest.param(
        KeyPolicy(scopes=frozenset(), kinds=frozenset(), max_expiry=NEVER, max_uses=None),
        '{"all_invites":false,"allow_username":false,"groups":[],"header_only":false,"kinds":[],'
        '"max_expiry":"never","max_uses":null,"quota":null,"roles":[],"scopes":[]}',
        id="without-bounds",
    ),
]


class TestPolicy:
    """Policies as JSON."""

    @pytest.mark.parametrize(("policy", "text"), POLICIES)
    def test_policy_is_written_as_ever(self, policy: KeyPolicy, text: str) -> None:
        """The JSON of a policy is frozen, to the letter."""
        assert policy_to_json(policy) == text

    @pytest.mark.parametrize(("policy", "text"), POLICIES)
    def test_policy_of_ever_is_read(self, policy: KeyPolicy, text: str) -> None:
        """What stands in databases stays readable."""
        assert policy_from_json(text) == policy

    @given(policies)
    def test_written_policy_reads_the_same(self, policy: KeyPolicy) -> None:
        """Reading what was written gives the same policy."""
        assert policy_from_json(policy_to_json(policy)) == policy

    @pytest.mark.parametrize(
        ("text", "policy"),
        [
            pytest.param("{}", DEFAULT_POLICY, id="nothing"),
            pytest.param('{"quota":[5,60]}', KeyPolicy(quota=Quota(5, timedelta(minutes=1))), id="one-field"),
        ],
    )
    def test_missing_field_has_its_default(self, text: str, policy: KeyPolicy) -> None:
        """A row of before a field existed grants what the default grants."""
        assert policy_from_json(text) == policy

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("", id="empty"),
            pytest.param("{", id="cut-off"),
            pytest.param("null", id="null"),
            pytest.param("[]", id="list"),
            pytest.param('"create"', id="text"),
            pytest.param("1", id="number"),
            pytest.param('{"max_lifetime":1}', id="unknown-field"),
            pytest.param('{"scopes":null}', id="scopes-null"),
            pytest.param('{"scopes":"create"}', id="scopes-a-text"),
            pytest.param('{"kinds":[1]}', id="kinds-of-numbers"),
            pytest.param('{"groups":{"a":1}}', id="groups-a-map"),
            pytest.param('{"max_uses":0}', id="no-use"),
            pytest.param('{"max_uses":-1}', id="negative"),
            pytest.param('{"max_uses":1.5}', id="fraction"),
            pytest.param('{"max_uses":true}', id="truth-for-a-number"),
            pytest.param('{"max_uses":"1"}', id="text-for-a-number"),
            pytest.param('{"max_expiry":"forever"}', id="another-word"),
            pytest.param('{"max_expiry":0}', id="no-time"),
            pytest.param('{"max_expiry":1e999}', id="infinity"),
            pytest.param('{"max_expiry":99999999999999999999}', id="beyond-every-duration"),
            pytest.param('{"quota":[]}', id="quota-empty"),
            pytest.param('{"quota":[1]}', id="quota-half"),
            pytest.param('{"quota":[1,null]}', id="quota-without-a-period"),
            pytest.param('{"quota":[1,60,60]}', id="quota-of-three"),
            pytest.param('{"quota":[0,60]}', id="quota-of-none"),
            pytest.param('{"quota":"1/1d"}', id="quota-a-text"),
        ],
    )
    def test_anything_else_is_corrupt(self, text: str) -> None:
        """What cannot have been written is CorruptRecord: a bound that is overlooked would be no bound."""
        with pytest.raises(CorruptRecord) as caught:
            policy_from_json(text)
        assert "create" not in str(caught.value)

    @given(st.text() | st.from_regex(r'\{"(scopes|quota|max_uses|max_expiry|groups|header_only)":[^}]{0,12}\}'))
    def test_no_text_is_another_error(self, text: str) -> None:
        """Whatever stands in the column, the answer is a policy or CorruptRecord."""
        try:
            assert isinstance(policy_from_json(text), KeyPolicy)
        except CorruptRecord:
            pass

    @pytest.mark.parametrize("value", ["1", '"yes"', "null", "[]", "{}", '"true"'])
    def test_only_true_grants(self, value: str) -> None:
        """What is not `true` grants nothing, and what is not `false` restricts."""
        try:
            policy = policy_from_json(f'{{"allow_username":{value},"all_invites":{value},"header_only":{value}}}')
        except CorruptRecord:
            return
        assert (policy.allow_username, policy.all_invites, policy.header_only) == (False, False, True)


class TestLists:
    """Lists of texts as JSON."""

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            pytest.param((), "[]", id="empty"),
            pytest.param(("b", "a", "b"), '["b","a","b"]', id="order-and-repeats"),
            pytest.param(("Gäste 🗝",), '["Gäste 🗝"]', id="unicode"),
            pytest.param(('"\\\n\t\x01',), '["\\"\\\\\\n\\t\\u0001"]', id="escapes"),
        ],
    )
    def test_list_is_written_as_ever(self, values: tuple[str, ...], text: str) -> None:
        """The JSON of a list is frozen, to the letter, and stays readable."""
        assert list_to_json(values) == text
        assert list_from_json(text) == values

    @given(st.lists(texts).map(tuple))
    def test_written_list_reads_the_same(self, values: tuple[str, ...]) -> None:
        """Reading what was written gives the same list."""
        assert list_from_json(list_to_json(values)) == values

    @pytest.mark.parametrize("text", ["", "[", "null", "{}", '"a"', "1", "[1]", "[null]", '["a",["b"]]'])
    def test_anything_else_is_corrupt(self, text: str) -> None:
        """What cannot have been written is CorruptRecord."""
        with pytest.raises(CorruptRecord):
            list_from_json(text)


class TestTimes:
    """Times as whole seconds since 1970."""

    @pytest.mark.parametrize(
        ("time", "seconds"),
        [
            pytest.param(datetime(1970, 1, 1, tzinfo=UTC), 0, id="epoch"),
            pytest.param(datetime(2026, 3, 1, 12, tzinfo=UTC), 1_772_366_400, id="noon"),
            pytest.param(datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC), 2**31, id="2038"),
            pytest.param(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), 253_402_300_799, id="last"),
        ],
    )
    def test_time_is_written_as_ever(self, time: datetime, seconds: int) -> None:
        """A time is its seconds since 1970, and comes back aware, in UTC."""
        assert to_seconds(time) == seconds
        assert from_seconds(seconds) == time
        assert from_seconds(seconds).tzinfo is UTC

    def test_time_of_another_zone_is_the_same_moment(self) -> None:
        """A time in another zone is stored as the moment that it is."""
        assert to_seconds(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0

    @given(times)
    def test_written_time_reads_the_same(self, time: datetime) -> None:
        """Reading what was written gives the same time."""
        assert from_seconds(to_seconds(time)) == time

    def test_no_time_stays_none(self) -> None:
        """None is no time, and no error."""
        assert to_seconds_or_none(None) is None
        assert from_seconds_or_none(None) is None
        assert from_seconds_or_none(0) == datetime(1970, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize("seconds", [2**62, -(2**62), 253_402_300_800, "1", None])
    def test_time_of_no_calendar_is_corrupt(self, seconds: int) -> None:
        """What no calendar has is CorruptRecord."""
        with pytest.raises(CorruptRecord):
            from_seconds(seconds)
