"""Creating over HTTP: every field of the body, many at once, policies, quotas, and requests that are repeated."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from invites_core import KeyPolicy, OutcomeUnknown
from invites_core.keys import NEVER, Quota
from invites_core.stores.memory import MemoryStore
from tests.wsgi.callers import EVERYTHING, Caller, make_caller, refused
from tests.wsgi.conftest import MakeService
from tests.wsgi.support import Service

JSON = {"Accept": "application/json"}


@pytest.fixture
def caller(service: Service) -> Caller:
    """A program whose key may make anything."""
    return make_caller(service)


def test_an_empty_object_makes_what_a_get_makes(caller: Caller) -> None:
    """A body without fields leaves everything at its default."""
    made, plain = caller.make(), caller.send("GET", headers=JSON).json()
    own = dict.fromkeys(("token", "uri", "landing_page"))
    assert {**made, **own} == {**plain, **own}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"kind": "register"}, {"kind": "register", "registration": True, "username": None}, id="register"),
        pytest.param({"username": "alice"}, {"username": "alice", "jid": "alice@example.com"}, id="username"),
        pytest.param({"username": "ALICE"}, {"username": "alice"}, id="username-normalised"),
        pytest.param({"username": None}, {"username": None, "jid": "example.com"}, id="username-null"),
        pytest.param(
            {"kind": "roster", "username": "bob"}, {"kind": "roster", "registration": False}, id="roster-alone"
        ),
        pytest.param(
            {"kind": "roster", "username": "bob", "registration": True},
            {"kind": "roster", "registration": True, "username": "bob"},
            id="roster-and-account",
        ),
        pytest.param(
            {"kind": "reset", "username": "carol"},
            {"kind": "reset", "registration": False, "max_uses": 1, "username": "carol"},
            id="reset",
        ),
        pytest.param({"expires_in": None}, {"expires_at": None}, id="never"),
        pytest.param({"max_uses": 3}, {"max_uses": 3, "uses": 0}, id="three-uses"),
        pytest.param({"max_uses": None}, {"max_uses": None}, id="unlimited"),
        pytest.param({"groups": ["staff", "friends"]}, {"groups": ["staff", "friends"]}, id="groups"),
        pytest.param({"roles": ["prosody:admin"]}, {"roles": ["prosody:admin"]}, id="roles"),
        pytest.param({"note": "für Zoë 😀"}, {"note": "für Zoë 😀"}, id="note"),
        pytest.param({"note": None}, {"note": None}, id="note-null"),
        pytest.param({"note": ""}, {"note": None}, id="note-empty"),
    ],
)
def test_each_field_makes_what_it_says(caller: Caller, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """A field of the body is a field of the invite, in the answer and in the store."""
    made = caller.make(**fields)
    assert {name: made[name] for name in expected} == expected
    assert (made["state"], made["source"], made["host"]) == ("pending", caller.source, "example.com")
    shown = caller.get(made["token"])
    assert {name: shown[name] for name in made} == made


@pytest.mark.parametrize(
    ("expires_in", "length"),
    [
        pytest.param("90s", timedelta(seconds=90), id="seconds"),
        pytest.param("5min", timedelta(minutes=5), id="minutes"),
        pytest.param("36h", timedelta(hours=36), id="hours"),
        pytest.param("30d", timedelta(days=30), id="days"),
        pytest.param("2w", timedelta(weeks=2), id="weeks"),
    ],
)
def test_a_duration_is_counted_from_now(caller: Caller, expires_in: str, length: timedelta) -> None:
    """`expires_in` sets the end of the invite's time."""
    invite = caller.service.get_invite(caller.make(expires_in=expires_in)["token"])
    assert invite.expires_at == caller.service.clock() + length


def test_many_are_made_at_once(caller: Caller) -> None:
    """`count` answers a list of so many different invites alike, and no Location."""
    answer = caller.send("POST", "", {"count": 5, "note": "party"})
    assert (answer.status, answer.get("Location"), answer["Content-Type"]) == (201, None, "application/json")
    invites = answer.json()["invites"]
    assert len({invite["token"] for invite in invites}) == 5 == caller.service.count()
    assert {invite["note"] for invite in invites} == {"party"}


@pytest.mark.parametrize("count", [pytest.param(1, id="one"), pytest.param(1000, id="most")])
def test_a_count_of_any_size_answers_a_list(caller: Caller, count: int) -> None:
    """A list comes of any `count` from 1 to 1,000."""
    assert len(caller.send("POST", "", {"count": count}).json()["invites"]) == count == caller.service.count()


def test_a_get_reads_no_body(caller: Caller) -> None:
    """What a GET has as its body says nothing, not even that it is wrong."""
    answer = caller.send_bytes("GET", "", b'{"count": 3')
    assert (answer.status, caller.service.count()) == (201, 1)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("query", "headers", "status", "has_body"),
    [
        pytest.param("", {}, 201, False, id="plain"),
        pytest.param("", JSON, 201, True, id="json"),
        pytest.param("?redirect=1", {}, 303, False, id="redirect"),
        pytest.param("?redirect=1", JSON, 303, False, id="redirect-outweighs-json"),
        pytest.param("?redirect=no", JSON, 201, True, id="no-redirect-json"),
    ],
)
def test_location_stands_in_every_answer(
    caller: Caller, method: str, query: str, headers: dict[str, str], status: int, has_body: bool
) -> None:
    """One invite is answered with its link in Location, whichever form the answer has."""
    answer = caller.send(method, query, headers=headers)
    assert answer.status == status
    assert answer["Location"] == f"https://example.com/invite?{answer.token}"
    assert caller.service.get_invite(answer.token)
    assert bool(answer.body) is has_body
    if has_body:
        assert answer.json()["landing_page"] == answer["Location"]


# Policies


PLAIN = KeyPolicy()


@pytest.mark.parametrize(
    ("policy", "fields", "field"),
    [
        pytest.param(PLAIN, {"kind": "reset", "username": "a"}, "kind", id="reset"),
        pytest.param(PLAIN, {"kind": "roster", "username": "a"}, "kind", id="roster"),
        pytest.param(
            KeyPolicy(kinds=frozenset({"roster"}), allow_username=True),
            {"kind": "roster", "username": "a", "registration": True},
            "registration",
            id="roster-that-registers",
        ),
        pytest.param(PLAIN, {"username": "alice"}, "username", id="username"),
        pytest.param(PLAIN, {"expires_in": "8d"}, "expires_in", id="longer-than-the-default"),
        pytest.param(PLAIN, {"expires_in": None}, "expires_in", id="never"),
        pytest.param(KeyPolicy(max_expiry=timedelta(hours=1)), {"expires_in": "2h"}, "expires_in", id="too-long"),
        pytest.param(PLAIN, {"max_uses": 2}, "max_uses", id="two-uses"),
        pytest.param(KeyPolicy(max_uses=9), {"max_uses": None}, "max_uses", id="unlimited"),
        pytest.param(PLAIN, {"groups": ["staff"]}, "groups", id="group"),
        pytest.param(KeyPolicy(groups=frozenset({"a"})), {"groups": ["a", "b"]}, "groups", id="one-group-too-many"),
        pytest.param(PLAIN, {"roles": ["prosody:admin"]}, "roles", id="role"),
        pytest.param(KeyPolicy(quota=Quota(3, timedelta(days=1))), {"count": 4}, "count", id="more-than-the-quota"),
    ],
)
def test_what_is_beyond_the_policy_is_refused_whole(
    service: Service, policy: KeyPolicy, fields: dict[str, Any], field: str
) -> None:
    """The answer is 403 with the field that is beyond the key's policy, and nothing is created."""
    caller = make_caller(service, policy)
    assert refused(caller.send("POST", "", fields)) == (403, "policy-refused", field)
    assert service.count() == 0


def test_a_spent_quota_says_when_again(service: Service) -> None:
    """A count that does not fit is refused whole with 429; the next period, which Retry-After names, takes it."""
    caller = make_caller(service, replace(EVERYTHING, quota=Quota(3, timedelta(hours=1))))
    assert caller.send("POST", "", {"count": 2}).status == 201
    answer = caller.send("POST", "", {"count": 2})
    assert refused(answer) == (429, "quota-spent", None)
    assert service.count() == 2
    wait = int(answer["Retry-After"])
    assert 1 <= wait <= 3600
    assert caller.send("GET").status == 201
    service.clock.advance(timedelta(seconds=wait - 1))
    assert caller.send("GET").status == 429
    service.clock.advance(timedelta(seconds=1))
    assert caller.send("GET").status == 201


# Repeats


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_repeat_gets_the_same_answer(caller: Caller, method: str) -> None:
    """The same Idempotency-Key gives the same answer and makes nothing twice."""
    headers = {"Idempotency-Key": "order-17", **JSON}
    first = caller.send(method, headers=headers)
    caller.service.clock.advance(timedelta(minutes=5))
    again = caller.send(method, headers=headers)
    assert (first.status, again.status, again.json(), again["Location"]) == (201, 201, first.json(), first["Location"])
    assert caller.service.count() == 1


def test_a_get_and_a_post_are_the_same_request(caller: Caller) -> None:
    """A GET is repeated by a POST that asks for nothing else."""
    headers = {"Idempotency-Key": "order-17"}
    assert caller.send("GET", headers=headers).token == caller.send("POST", "", {}, headers=headers).token


def test_many_are_repeated(caller: Caller) -> None:
    """All invites of a repeated `count` are the same, in the same order."""
    headers = {"Idempotency-Key": "order-17"}
    first, again = (caller.send("POST", "", {"count": 3}, headers=headers).json() for _ in range(2))
    assert first == again
    assert caller.service.count() == 3


def test_a_repeat_takes_no_quota(service: Service) -> None:
    """A repeat of what was made is answered though the quota is spent."""
    caller = make_caller(service, replace(EVERYTHING, quota=Quota(1, timedelta(days=1))))
    headers = {"Idempotency-Key": "order-17"}
    assert caller.send("GET", headers=headers).token == caller.send("GET", headers=headers).token
    assert caller.send("GET", headers={"Idempotency-Key": "order-18"}).status == 429


@pytest.mark.parametrize(
    "fields", [pytest.param({"note": "other"}, id="another-note"), pytest.param({"count": 2}, id="another-count")]
)
def test_another_request_with_the_same_identity_is_a_conflict(caller: Caller, fields: dict[str, Any]) -> None:
    """The same Idempotency-Key for something else is 422, and nothing is created."""
    headers = {"Idempotency-Key": "order-17"}
    caller.send("POST", "", {"note": "one"}, headers=headers)
    assert refused(caller.send("POST", "", fields, headers=headers)) == (422, "idempotency-conflict", None)
    assert caller.service.count() == 1


def test_identities_of_two_keys_have_nothing_to_do_with_each_other(service: Service) -> None:
    """Each key has Idempotency-Keys of its own."""
    headers = {"Idempotency-Key": "order-17"}
    tokens = {make_caller(service).send("GET", headers=headers).token for _ in range(2)}
    assert len(tokens) == 2


@pytest.mark.parametrize("value", ["", "a b", "ä", "x" * 256], ids=["empty", "space", "not-ascii", "long"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_identity_that_is_none_is_refused(caller: Caller, method: str, value: str) -> None:
    """An Idempotency-Key is 1 to 255 printable ASCII characters without spaces."""
    answer = caller.send(method, headers={"Idempotency-Key": value})
    assert refused(answer) == (400, "invalid-request", "idempotency_key")
    assert caller.service.count() == 0


class LosesReplies(MemoryStore):
    """A store that does what it is asked, and loses the reply as often as it is told to."""

    losses = 0

    def _reply(self) -> None:
        if self.losses:
            self.losses -= 1
            raise OutcomeUnknown("the reply was lost")

    def add_granted(self, *args: Any, **kwargs: Any) -> Any:
        result = super().add_granted(*args, **kwargs)
        self._reply()
        return result

    def redeem_invite(self, *args: Any, **kwargs: Any) -> Any:
        result = super().redeem_invite(*args, **kwargs)
        self._reply()
        return result


def test_a_lost_reply_is_had_again(make_service: MakeService) -> None:
    """After 503 outcome-unknown the same request with its Idempotency-Key gives the invite that was made."""
    store = LosesReplies()
    caller = make_caller(make_service(store))
    store.losses = 1
    headers = {"Idempotency-Key": "order-17"}
    answer = caller.send("GET", headers=headers)
    assert refused(answer) == (503, "outcome-unknown", None)
    assert answer["Retry-After"] == "1"
    again = caller.send("GET", headers=headers)
    assert (again.status, caller.service.count()) == (201, 1)
    assert caller.service.get_invite(again.token)


def test_a_lost_redemption_is_repeated(make_service: MakeService) -> None:
    """503 outcome-unknown names the redemption_id that was chosen, and repeating it takes no second use."""
    store = LosesReplies()
    caller = make_caller(make_service(store))
    token = caller.make()["token"]
    store.losses = 1
    answer = caller.send("POST", f"/invites/{token}/redeem", {"redeemer": "alice"})
    assert refused(answer)[:2] == (503, "outcome-unknown")
    identity = answer.json()["redemption_id"]
    again = caller.send("POST", f"/invites/{token}/redeem", {"redeemer": "alice", "redemption_id": identity})
    assert (again.status, again.json()["invite"]["uses"]) == (200, 1)


def test_never_is_what_a_policy_may_grant(service: Service) -> None:
    """A key with the longest lifetime `never` makes invites that do not end."""
    caller = make_caller(service, KeyPolicy(scopes=frozenset({"create", "read"}), max_expiry=NEVER))
    assert caller.make(expires_in=None)["expires_at"] is None


def test_the_default_lifetime_is_no_longer_than_the_longest(service: Service) -> None:
    """Where nothing is asked, an invite ends with the key's longest lifetime if that is shorter than the default."""
    caller = make_caller(service, KeyPolicy(scopes=frozenset({"create"}), max_expiry=timedelta(hours=1)))
    invite = service.get_invite(caller.make()["token"])
    assert invite.expires_at == service.clock() + timedelta(hours=1)
