"""What is shipped for tests serves a project of its own, and tells a store that does not keep the contract."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest

import invites_core
from invites_core.hashing import SecretHasher
from invites_core.testing import FakeClock, cheap_hasher
from tests.helpers import NOON

PROJECT = """

    import pytest

    from invites_core import ApiKeys, Invites
    from invites_core.stores.memory import MemoryStore
    from invites_core.testing import InviteStoreSuite, KeyStoreSuite, StoreSuite


    class KeptStore(MemoryStore):
        pass


    class BrokenStore(MemoryStore):
        def redeem_invite(self, token, **options):
            return super().redeem_invite(token, **{**options, "redemption_id": options["redemption_id"].lower()})


    class TestKeys(KeyStoreSuite):
        @pytest.fixture
        def store(self):
            return KeptStore()


    class TestInvites(InviteStoreSuite):
        @pytest.fixture
        def store(self):
            return %s()


    class TestBoth(StoreSuite):
        @pytest.fixture
        def store(self):
            return KeptStore()


    def test_fixtures(fake_clock, cheap_hasher):
        store = MemoryStore()
        keys = ApiKeys(store, hasher=cheap_hasher, clock=fake_clock)
        issued = keys.create("example.com")
        fake_clock.advance(60)
        assert Invites(store, clock=fake_clock).create(keys.verify(issued.combined)).created_at == fake_clock.now
"""


def run_project(folder: Path, store: str) -> tuple[int, int, str]:
    """Run the tests of a project that has a store of its own; return how many passed and failed, and the report."""
    (folder / "conftest.py").write_text('pytest_plugins = ["invites_core.testing.fixtures"]\n')
    (folder / "test_stores.py").write_text(textwrap.dedent(PROJECT % store))
    path = str(Path(invites_core.__file__).parent.parent)
    script = f"import sys, pytest; sys.path.insert(0, {path!r}); sys.exit(pytest.main())"
    argv = [sys.executable, "-P", "-c", script, "-q", "-W", "error", "-p", "no:cacheprovider", "--tb=short"]
    ended = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    report = ended.stdout + ended.stderr
    passed, failed = (re.search(rf"(\d+) {word}", report) for word in ("passed", "failed"))
    assert passed is not None, report
    return int(passed[1]), int(failed[1]) if failed else 0, report


def test_a_store_of_somebody_else_is_held_to_the_contract(tmp_path: Path) -> None:
    """A project takes the suites and the fixtures, and a store that keeps the contract passes all of them."""
    passed, failed, report = run_project(tmp_path, "KeptStore")
    assert failed == 0, report
    assert passed > 150


def test_a_store_that_breaks_the_contract_is_told_why(tmp_path: Path) -> None:
    """A store that confuses two identities fails, and the report shows what was compared."""
    _, failed, report = run_project(tmp_path, "BrokenStore")
    assert failed == 1, report
    assert "test_identities_are_told_apart_to_the_letter[case]" in report
    assert "At index 1 diff: 'repeated' != 'redeemed'" in report


def test_clock_stands_still_until_it_is_moved() -> None:
    """A fake clock moves by durations and by seconds, and not by itself."""
    clock = FakeClock()
    assert clock() == clock() == NOON
    clock.advance(timedelta(days=1))
    clock.advance(0.5)
    assert clock() == NOON + timedelta(days=1, milliseconds=500)


def test_cheap_hashes_are_hashes() -> None:
    """A cheap hasher takes what the product's takes, and refuses what it refuses."""
    hasher = cheap_hasher()
    secret_hash = hasher.hash("correct horse")
    assert secret_hash.startswith("$argon2id$")
    SecretHasher().verify("correct horse", secret_hash)
    with pytest.raises(invites_core.InvalidKey):
        hasher.verify("battery staple", secret_hash)
