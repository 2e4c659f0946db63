"""What is stored of a secret, and how little work a wrong one costs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import argon2
import pytest
from argon2.exceptions import HashingError, VerificationError
from hypothesis import HealthCheck, given, settings, strategies as st

from invites_core.errors import Busy, CorruptRecord, InvalidKey, StorageError
from invites_core.hashing import SecretHasher, compute_tag
from invites_core.keys import generate_secret
from invites_core.service import ApiKeys
from invites_core.stores.memory import MemoryStore
from tests.helpers import PATIENCE, CountedArgon2, count_argon2, run_at_once, wait_until
from tests.processes import Fork

SECRET: Final = "73UUylA-2ZJbu9x1XMATuIbjWpip8ow1"
# Computed with OpenSSL's ARGON2ID, and its base64 as PHC strings have it.
CHEAP_HASH: Final = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$1joyv8jDrL1ajckBYRZCvFdQycPA+sWbDg435nRUnro"
PRODUCT_HASH: Final = "$argon2id$v=19$m=7168,t=5,p=1$c29tZXNhbHRzb21lc2FsdA$Qkv6VmS1KcMSuE+i/kBK8mquC4XJFoFwGyBOBpX6anU"

CALLER: Final = "caller"
# In a process of its own, whose memory nothing has used before. The threads are there all the time, as a server's are.
MEMORY_SCRIPT: Final = """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from invites_core.hashing import SecretHasher

def find_resident_kib():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])

def check(number):
    all_are_here.wait()
    hasher.verify(f"secret-{number}", hashes[number])

hasher, all_are_here = SecretHasher(threads=16), Barrier(8)
hashes = [hasher.hash(f"secret-{number}") for number in range(8)]
before = find_resident_kib()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(check, range(8)))
    print(find_resident_kib() - before)
"""


@pytest.fixture
def counted(hasher: SecretHasher) -> CountedArgon2:
    """The hasher's argon2, counted, with a gate that is open."""
    return count_argon2(hasher)


class SlowLock:
    """A lock before which every caller's thread stops, once it has come so far, until it may go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread().name == CALLER:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
        self._lock.acquire()

    def __exit__(self, *details: object) -> None:
        self._lock.release()


class Callers:
    """Threads that each check a secret, and what came of it."""

    def __init__(self, hasher: SecretHasher) -> None:
        self._hasher = hasher
        self._threads: list[threading.Thread] = []
        self.outcomes: list[str] = []

    def start(self, secret: str, secret_hash: str) -> None:
        thread = threading.Thread(target=self._verify, args=(secret, secret_hash), name=CALLER, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _verify(self, secret: str, secret_hash: str) -> None:
        try:
            self._hasher.verify(secret, secret_hash)
        except Exception as error:
            self.outcomes.append(type(error).__name__)
        else:
            self.outcomes.append("accepted")

    def finish(self) -> list[str]:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a caller was never answered"
        return sorted(self.outcomes)


def count_working(hasher: SecretHasher) -> int:
    return hasher._state.get().working


class TestTag:
    """The reject tag: a stored format."""

    @pytest.mark.parametrize(
        ("key_id", "secret", "tag"),
        [
            # Computed with `openssl dgst -sha256 -hmac 'invites-api tag v1'`, and by hand from RFC 2104.
            pytest.param("HTwALnKL", SECRET, "52841c39d969e7dd", id="8-and-32"),
            pytest.param("-LihiCNf28-X", "s" * 36, "8425b688c8bf6b35", id="12-and-36"),
            pytest.param("a", "b", "fe8813071a0be27d", id="shortest"),
            pytest.param("i" * 127, "s" * 127, "b2b450ac323d8b14", id="longest"),
        ],
    )
    def test_tag_is_frozen(self, key_id: str, secret: str, tag: str) -> None:
        """The tag of a key is what it has always been: every stored key depends on it."""
        assert compute_tag(key_id, secret).hex() == tag

    def test_id_and_secret_do_not_run_together(self) -> None:
        """Where the id ends is part of what is signed."""
        assert compute_tag("ab", "c") != compute_tag("a", "bc")

    @given(key_id=st.from_regex(r"[A-Za-z0-9_-]{1,253}", fullmatch=True), secret=st.from_regex(r"[A-Za-z0-9_-]+"))
    def test_every_key_has_a_tag(self, key_id: str, secret: str) -> None:
        """Whatever parses as a key has a tag of 8 bytes."""
        assert len(compute_tag(key_id, secret)) == 8


class TestStoredHash:
    """The hash: a stored format, and a row that somebody may have planted."""

    def test_hash_names_its_cost(self) -> None:
        """A new hash is argon2id with 7 MiB, 5 passes and 1 lane, 16 bytes of salt and 32 of hash."""
        parameters = argon2.extract_parameters(SecretHasher().hash(SECRET))
        assert parameters == argon2.Parameters(
            type=argon2.Type.ID, version=19, salt_len=16, hash_len=32, time_cost=5, memory_cost=7168, parallelism=1
        )

    def test_hash_is_salted(self, hasher: SecretHasher) -> None:
        """The same secret is never stored the same twice."""
        assert hasher.hash(SECRET) != hasher.hash(SECRET)

    @pytest.mark.parametrize(
        "secret_hash",
        [
            pytest.param(CHEAP_HASH, id="cheap"),
            pytest.param(PRODUCT_HASH, id="product"),
            pytest.param(argon2.PasswordHasher(1, 64, 4, 16, 8).hash(SECRET), id="four-lanes-and-16-bytes"),
        ],
    )
    def test_hash_of_another_program_is_checked(self, hasher: SecretHasher, secret_hash: str) -> None:
        """A hash says itself how it was made, so a hasher of other settings checks it too."""
        hasher.verify(SECRET, secret_hash)
        with pytest.raises(InvalidKey):
            hasher.verify(SECRET[:-1], secret_hash)

    @given(secret=st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True), other=st.text(max_size=50))
    @settings(max_examples=50)
    def test_own_hash_is_accepted_and_no_other_secret(self, secret: str, other: str) -> None:
        """A secret matches its hash, and another does not."""
        hasher = SecretHasher(time_cost=1, memory_kib=8)
        secret_hash = hasher.hash(secret)
        hasher.verify(secret, secret_hash)
        if other != secret:
            with pytest.raises(InvalidKey):
                hasher.verify(other, secret_hash)

    @pytest.mark.parametrize(
        "secret_hash",
        [
            pytest.param(CHEAP_HASH.replace("t=1", "t=17"), id="passes"),
            pytest.param(CHEAP_HASH.replace("t=1", "t=4294967295"), id="most-passes"),
            pytest.param(CHEAP_HASH.replace("m=8", f"m={64 * 1024 + 1}"), id="memory"),
            pytest.param(CHEAP_HASH.replace("m=8", "m=4294967295"), id="most-memory"),
            pytest.param(CHEAP_HASH.replace("m=8", "m=7"), id="too-little-memory"),
            pytest.param(CHEAP_HASH.replace("t=1", "t=0"), id="no-pass"),
            pytest.param(CHEAP_HASH.replace("t=1", "t=-1"), id="negative"),
            pytest.param(CHEAP_HASH.replace("p=1", "p=5"), id="lanes"),
            pytest.param(CHEAP_HASH.replace("p=1", "p=0"), id="no-lane"),
            pytest.param(CHEAP_HASH.replace("argon2id", "argon2i"), id="argon2i"),
            pytest.param(CHEAP_HASH.replace("argon2id", "argon2d"), id="argon2d"),
            pytest.param(CHEAP_HASH[: -43 + 7], id="four-bytes-of-hash"),
            pytest.param(CHEAP_HASH + "A" * 400, id="long-hash"),
        ],
    )
    def test_work_beyond_the_bounds_is_not_done(
        self, hasher: SecretHasher, counted: CountedArgon2, secret_hash: str
    ) -> None:
        """A stored hash that asks for too much, or is worth too little, is CorruptRecord before any work."""
        with pytest.raises(CorruptRecord):
            hasher.verify(SECRET, secret_hash)
        assert counted.calls == 0

    @pytest.mark.parametrize(
        "secret_hash",
        [
            pytest.param("", id="empty"),
            pytest.param("garbage", id="garbage"),
            pytest.param("$", id="dollar"),
            pytest.param("$$$$$", id="dollars"),
            pytest.param("$2b$12$abcdefghijklmnopqrstuv", id="bcrypt"),
            pytest.param(CHEAP_HASH.replace("argon2id", "argon2x"), id="unknown-kind"),
            pytest.param(CHEAP_HASH.replace("m=8,", ""), id="no-memory"),
            pytest.param(CHEAP_HASH.replace("m=8", "m=x"), id="no-number"),
            pytest.param(CHEAP_HASH.replace("m=8", "m=" + "9" * 5_000), id="endless-number"),
            pytest.param(CHEAP_HASH.replace("m=8", "m=\uff18"), id="digit-of-another-script"),
            pytest.param(CHEAP_HASH.replace("t=1,", "t=1,x=1,"), id="unknown-parameter"),
            pytest.param(CHEAP_HASH.replace("c29tZXNhbHRzb21lc2FsdA", "c29t"), id="short-salt"),
            pytest.param(CHEAP_HASH.replace("c29tZXNhbHRzb21lc2FsdA", "?!"), id="salt-of-no-base64"),
            pytest.param(CHEAP_HASH + "é", id="letter-beyond-ascii"),
            pytest.param(CHEAP_HASH + "\n", id="newline"),
            pytest.param(" " + CHEAP_HASH, id="space"),
        ],
    )
    def test_garbled_hash_is_no_wrong_secret(self, hasher: SecretHasher, secret_hash: str) -> None:
        """A stored hash that cannot be read is CorruptRecord, never InvalidKey, and is not shown."""
        with pytest.raises(CorruptRecord) as caught:
            hasher.verify(SECRET, secret_hash)
        assert str(caught.value).isascii()
        assert "argon2id" not in str(caught.value)
        assert "\n" not in str(caught.value)

    @given(
        st.text(max_size=120)
        | st.builds(
            lambda start, end, between: CHEAP_HASH[:start] + between + CHEAP_HASH[end:],
            st.integers(0, len(CHEAP_HASH)),
            st.integers(0, len(CHEAP_HASH)),
            st.text(max_size=3),
        )
    )
    def test_no_stored_text_is_another_error(self, secret_hash: str) -> None:
        """Whatever stands in the column, the answer is yes, InvalidKey or CorruptRecord."""
        hasher = SecretHasher(time_cost=1, memory_kib=8)
        # The tail after a NUL never reaches the library that parses a hash.
        try:
            hasher.verify(SECRET, secret_hash)
        except (InvalidKey, CorruptRecord):
            return
        assert secret_hash.partition("\0")[0] == CHEAP_HASH

    def test_missing_memory_is_no_wrong_secret(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """Where a hash cannot be computed for lack of memory the answer is StorageError, and the next try is free."""
        counted.failure = VerificationError("Memory allocation error")
        with pytest.raises(StorageError) as caught:
            hasher.verify(SECRET, CHEAP_HASH)
        assert not isinstance(caught.value, CorruptRecord)
        counted.failure = None
        hasher.verify(SECRET, CHEAP_HASH)

    def test_any_failure_is_told(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """An error that nobody thought of comes out as StorageError, from the error itself."""
        counted.failure = RuntimeError("unforeseen")
        with pytest.raises(StorageError) as caught:
            hasher.verify(SECRET, CHEAP_HASH)
        assert caught.value.__cause__ is counted.failure
        assert count_working(hasher) == 0

    def test_missing_memory_for_a_new_hash_is_ours(self, hasher: SecretHasher, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a new hash cannot be computed the answer is StorageError, as it is for a check."""

        class NoMemory:
            def hash(self, secret: str) -> str:
                raise HashingError("Memory allocation error")

        monkeypatch.setattr(hasher, "_argon2", NoMemory())
        with pytest.raises(StorageError):
            hasher.hash(SECRET)


class TestCache:
    """What is remembered: this secret matches this hash, and nothing else."""

    def test_match_is_computed_once(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """A secret that has matched its hash is answered without computing."""
        for _ in range(100):
            hasher.verify(SECRET, CHEAP_HASH)
        assert counted.calls == 1

    def test_mismatch_is_not_remembered(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """A wrong secret whose tag matched is computed each time: nothing about it is kept."""
        for _ in range(3):
            with pytest.raises(InvalidKey):
                hasher.verify("wrong", CHEAP_HASH)
        assert counted.calls == 3
        assert not hasher._state.get().cache
        assert not hasher._state.get().pending

    def test_match_is_of_one_secret_and_one_hash(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """What is known of a secret and a hash answers for no other secret and no other hash."""
        own, other = hasher.hash(SECRET), hasher.hash("other")
        hasher.verify(SECRET, own)
        with pytest.raises(InvalidKey):
            hasher.verify("other", own)
        with pytest.raises(InvalidKey):
            hasher.verify(SECRET, other)
        assert counted.calls == 3
        with pytest.raises(CorruptRecord):
            hasher.verify(SECRET + own[0], own[1:])

    def test_second_hash_of_a_secret_is_computed(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """Two hashes of the same secret are two facts."""
        hasher.verify(SECRET, hasher.hash(SECRET))
        hasher.verify(SECRET, hasher.hash(SECRET))
        assert counted.calls == 2

    def test_cache_is_bounded(self) -> None:
        """No more secrets are remembered than were asked for, and those beyond are computed again."""
        hasher = SecretHasher(time_cost=1, memory_kib=8, cache_size=10)
        counted = count_argon2(hasher)
        pairs = [(secret, hasher.hash(secret)) for secret in (generate_secret() for _ in range(30))]
        for pair in pairs:
            hasher.verify(*pair)
        assert len(hasher._state.get().cache) == 10
        for pair in pairs[-10:]:
            hasher.verify(*pair)
        assert counted.calls == 30
        hasher.verify(*pairs[0])
        assert counted.calls == 31

    def test_cache_holds_no_secret(self, hasher: SecretHasher) -> None:
        """What is remembered is a keyed digest: the same secret and hash are another in another process or hasher."""
        another = SecretHasher(time_cost=1, memory_kib=8)
        hasher.verify(SECRET, CHEAP_HASH)
        another.verify(SECRET, CHEAP_HASH)
        [digest], [other] = hasher._state.get().cache, another._state.get().cache
        assert len(digest) == 32
        assert digest != other


class TestBoundedWork:
    """One hash for many waiters, and Busy at once beyond half of the threads."""

    def test_hash_is_computed_once_for_all_who_wait(self, counted: CountedArgon2, hasher: SecretHasher) -> None:
        """Callers with the same secret wait for one computation, and all are accepted."""
        counted.gate.clear()
        callers = Callers(hasher)
        for _ in range(4):
            callers.start(SECRET, CHEAP_HASH)
        wait_until(lambda: count_working(hasher) == 4)
        counted.gate.set()
        assert callers.finish() == ["accepted"] * 4
        assert counted.calls == 1

    def test_mismatch_is_told_to_all_who_wait(self, counted: CountedArgon2, hasher: SecretHasher) -> None:
        """Callers with the same wrong secret are all refused after one computation."""
        counted.gate.clear()
        callers = Callers(hasher)
        for _ in range(4):
            callers.start("wrong", CHEAP_HASH)
        wait_until(lambda: count_working(hasher) == 4)
        counted.gate.set()
        assert callers.finish() == ["InvalidKey"] * 4
        assert counted.calls == 1

    def test_failure_is_told_to_all_who_wait(self, counted: CountedArgon2, hasher: SecretHasher) -> None:
        """Where the computation fails none of those who wait is left waiting, or told that the secret is wrong."""
        counted.gate.clear()
        counted.failure = MemoryError()
        callers = Callers(hasher)
        for _ in range(4):
            callers.start(SECRET, CHEAP_HASH)
        wait_until(lambda: count_working(hasher) == 4)
        counted.gate.set()
        assert callers.finish() == ["StorageError"] * 4
        assert count_working(hasher) == 0

    def test_match_found_between_look_and_turn_is_used(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """A caller that found nothing in the cache computes nothing if another has matched the secret meanwhile."""
        state = hasher._state.get()
        slow = SlowLock()
        state.lock = cast(threading.Lock, slow)
        callers = Callers(hasher)
        callers.start(SECRET, CHEAP_HASH)
        assert slow.reached.wait(PATIENCE)
        hasher.verify(SECRET, CHEAP_HASH)
        slow.go_on.set()
        assert callers.finish() == ["accepted"]
        assert counted.calls == 1

    def test_beyond_half_of_the_threads_is_busy(self, counted: CountedArgon2, hasher: SecretHasher) -> None:
        """With 8 threads 4 compute or wait; the fifth is told Busy at once, and later is served."""
        pairs = [(secret, hasher.hash(secret)) for secret in (generate_secret() for _ in range(5))]
        counted.gate.clear()
        callers = Callers(hasher)
        for pair in pairs[:4]:
            callers.start(*pair)
        wait_until(lambda: count_working(hasher) == 4)
        with pytest.raises(Busy) as caught:
            hasher.verify(*pairs[4])
        assert caught.value.retry_after >= 1
        assert counted.calls == 1, "one permit, so one computes and three wait for it"
        counted.gate.set()
        assert callers.finish() == ["accepted"] * 4
        hasher.verify(*pairs[4])
        assert counted.most_running == 1

    def test_waiters_count_as_well(self, counted: CountedArgon2, hasher: SecretHasher) -> None:
        """Those who wait for a computation hold a thread as those who compute do, whatever the secret is."""
        counted.gate.clear()
        callers = Callers(hasher)
        for _ in range(4):
            callers.start(SECRET, CHEAP_HASH)
        wait_until(lambda: count_working(hasher) == 4)
        with pytest.raises(Busy):
            hasher.verify(SECRET, CHEAP_HASH)
        counted.gate.set()
        assert callers.finish() == ["accepted"] * 4

    def test_known_keys_are_answered_meanwhile(self, counted: CountedArgon2, hasher: SecretHasher) -> None:
        """While every place for computing is taken a secret that is known is answered at once."""
        warm = generate_secret()
        warm_hash = hasher.hash(warm)
        hasher.verify(warm, warm_hash)
        counted.gate.clear()
        callers = Callers(hasher)
        for _ in range(4):
            secret = generate_secret()
            callers.start(secret, hasher._argon2.hash(secret))
        wait_until(lambda: count_working(hasher) == 4)
        for _ in range(1_000):
            hasher.verify(warm, warm_hash)
        assert not callers.outcomes, "the cold ones still wait"
        counted.gate.set()
        assert callers.finish() == ["accepted"] * 4

    @pytest.mark.parametrize(
        ("threads", "most"),
        [
            pytest.param(1, 1, id="one-thread-can-compute"),
            pytest.param(2, 1, id="two"),
            pytest.param(3, 1, id="three"),
            pytest.param(8, 4, id="eight"),
        ],
    )
    def test_at_most_half_of_the_threads_work(self, threads: int, most: int) -> None:
        """However many threads there are, those who compute or wait are at most half of them, and at least one."""
        hasher = SecretHasher(time_cost=1, memory_kib=8, permits=8, threads=threads)
        counted = count_argon2(hasher)
        counted.gate.clear()
        callers = Callers(hasher)
        for number in range(most):
            callers.start(f"secret-{number}", CHEAP_HASH)
        wait_until(lambda: counted.running == most)
        with pytest.raises(Busy):
            hasher.verify("one-more", CHEAP_HASH)
        counted.gate.set()
        assert callers.finish() == ["InvalidKey"] * most

    def test_permits_bound_what_runs_at_once(self) -> None:
        """As many computations run at once as there are permits, and no more."""
        hasher = SecretHasher(time_cost=1, memory_kib=8, permits=2, threads=16)
        counted = count_argon2(hasher)
        counted.gate.clear()
        callers = Callers(hasher)
        for number in range(8):
            callers.start(f"secret-{number}", CHEAP_HASH)
        wait_until(lambda: count_working(hasher) == 8 and counted.running == 2)
        counted.gate.set()
        assert callers.finish() == ["InvalidKey"] * 8
        assert counted.most_running == 2
        assert counted.calls == 8

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's memory is told by Linux's /proc")
    def test_memory_is_bounded_by_permits(self) -> None:
        """With one permit the memory of one computation is all that is held, whichever threads ask."""
        run = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, timeout=PATIENCE)
        assert run.returncode == 0, run.stderr
        # The first was computed before; one more, from another thread, would be 7 MiB.
        assert int(run.stdout) < 7 * 1024, f"{run.stdout} KiB more"

    def test_storm_leaves_nothing_behind(self, hasher: SecretHasher, counted: CountedArgon2) -> None:
        """After threads with many secrets, right and wrong, every place is free again and nothing is pending."""
        pairs = [(secret, hasher.hash(secret)) for secret in (generate_secret() for _ in range(10))]

        def storm() -> int:
            accepted = 0
            for secret, secret_hash in pairs * 5:
                for candidate in (secret, "wrong"):
                    try:
                        hasher.verify(candidate, secret_hash)
                    except (InvalidKey, Busy):
                        continue
                    assert candidate == secret
                    accepted += 1
            return accepted

        functions: list[Callable[[], int]] = [storm] * 8
        outcomes = run_at_once(functions)
        assert all(isinstance(outcome, int) for outcome in outcomes), outcomes
        state = hasher._state.get()
        assert state.working == 0
        assert not state.pending
        assert len(state.cache) == 10
        assert counted.most_running == 1


class TestCountedWork:
    """Which keys reach argon2 at all."""

    def test_wrong_secrets_never_reach_argon2(self, api_keys: ApiKeys, counted: CountedArgon2) -> None:
        """100,000 wrong secrets for a known id are refused without one call of argon2."""
        issued = api_keys.create("example.com")
        for number in range(100_000):
            with pytest.raises(InvalidKey):
                api_keys.verify(f"{issued.key.id}/{number:032}")
        assert counted.calls == 0

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_only_a_cold_right_secret_is_hashed(
        self, memory_store: MemoryStore, hasher: SecretHasher, data: st.DataObject
    ) -> None:
        """Of any sequence of keys, right, wrong, unknown and malformed, each right one is hashed once, and no other."""
        keys = ApiKeys(memory_store, hasher=hasher)
        issued = [keys.create("example.com") for _ in range(2)]
        fresh = SecretHasher(time_cost=1, memory_kib=8)
        counted = count_argon2(fresh)
        keys = ApiKeys(memory_store, hasher=fresh)
        right = [one.combined for one in issued]
        wrong = st.one_of(
            st.text(max_size=60),
            st.builds("{}/{}".format, st.sampled_from([one.key.id for one in issued]), st.text(max_size=40)),
            st.builds("{}/{}".format, st.text(max_size=12), st.sampled_from([one.secret for one in issued])),
            st.just(f"{issued[0].key.id}/{issued[1].secret}"),
            st.just(f"{issued[0].combined}A"),
            st.just(issued[0].combined[:-1]),
        ).filter(lambda text: text not in right)
        shown = data.draw(st.lists(st.sampled_from(right) | wrong, max_size=12))
        for combined in shown:
            try:
                keys.verify(combined)
            except InvalidKey:
                assert combined not in right
            else:
                assert combined in right
        assert counted.calls == len({combined for combined in shown if combined in right})


class TestFork:
    """A child begins anew."""

    def test_child_has_an_empty_cache_and_a_key_of_its_own(
        self, hasher: SecretHasher, counted: CountedArgon2, fork: Fork
    ) -> None:
        """What a parent has matched its child computes again, under another key; the parent still knows it."""
        hasher.verify(SECRET, CHEAP_HASH)

        def check() -> tuple[bytes, int, int]:
            before = len(hasher._state.get().cache)
            hasher.verify(SECRET, CHEAP_HASH)
            return hasher._state.get().digest_key, before, counted.calls

        keys = {hasher._state.get().digest_key}
        for child in (fork(check), fork(check)):
            digest_key, known_before, calls = child.result()
            keys.add(digest_key)
            assert known_before == 0
            assert calls == 2
        assert len(keys) == 3
        hasher.verify(SECRET, CHEAP_HASH)
        assert counted.calls == 1

    def test_locks_that_were_held_do_not_stop_the_child(
        self, hasher: SecretHasher, counted: CountedArgon2, fork: Fork
    ) -> None:
        """While the parent's threads compute and hold every lock, a child checks the same secret for itself."""
        counted.gate.clear()
        callers = Callers(hasher)
        for _ in range(4):
            callers.start(SECRET, CHEAP_HASH)
        wait_until(lambda: count_working(hasher) == 4 and counted.running == 1)

        def check() -> int:
            hasher.verify(SECRET, CHEAP_HASH)
            with pytest.raises(InvalidKey):
                hasher.verify("wrong", CHEAP_HASH)
            hasher.hash(SECRET)
            return count_working(hasher)

        with hasher._state.get().lock:
            child = fork(check)
        assert child.result() == 0
        counted.gate.set()
        assert callers.finish() == ["accepted"] * 4
