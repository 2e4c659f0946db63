"""The scripts in bin/, run as a user runs them: from a checkout whose path has a space in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chromium import read_qr
from tests.servers import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
KEY = re.compile(r"^    ([\w-]{8}/[\w-]{32})$", re.MULTILINE)
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts in bin/ need bash")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout as far as the scripts are concerned; what they run is what is installed for the tests."""
    copy = tmp_path / "a check out"
    shutil.copytree(ROOT / "bin", copy / "bin", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with next to nothing in it, and a home that nobody can write to."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "INVITES_VENV": sys.prefix}


def run(script: Path, *arguments: str, env: Mapping[str, str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments], env=env, cwd="/", input=text, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


class Running:
    """bin/run at work, in a session of its own."""

    def __init__(self, checkout: Path, env: Mapping[str, str]) -> None:
        self._output = checkout.parent / f"output-{time.monotonic_ns()}"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [checkout / "bin" / "run"],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output holds a match."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := re.search(pattern, self.output, re.MULTILINE)) is None:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        return found

    def is_gone(self) -> bool:
        """Tell, within some time, whether the last process of the session has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


@contextlib.contextmanager
def running(checkout: Path, env: Mapping[str, str]) -> Iterator[Running]:
    started = Running(checkout, env)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait()


@pytest.mark.real_server
@pytest.mark.parametrize(
    "stop",
    [
        # A terminal sends it to every process that was started from its command line.
        pytest.param(lambda process: os.killpg(process, signal.SIGINT), id="ctrl-c"),
        pytest.param(lambda process: os.kill(process, signal.SIGINT), id="int"),
        pytest.param(lambda process: os.kill(process, signal.SIGTERM), id="term"),
    ],
)
def test_run_shows_a_working_request_and_leaves_nothing_behind(
    checkout: Path, environment: dict[str, str], stop: Callable[[int], None]
) -> None:
    """bin/run makes its settings and database, prints a key, uses it, and ends whole when it is told to."""
    port = free_port()
    with running(checkout, {**environment, "INVITES_RUN_PORT": str(port)}) as server:
        location = server.wait_for(r"^    201 Created\n    Location: (\S+)$")[1]
        assert location.startswith(f"http://127.0.0.1:{port}/invite?")
        assert f"Database: {checkout / 'var' / 'invites.db'}\n" in server.output
        assert f"Settings: {checkout / 'var' / 'invites-api.toml'}\n" in server.output
        stop(server.process.pid)
        assert server.process.wait(PATIENCE_SECONDS) == 0, server.output
        assert server.is_gone()
    assert {path.stat().st_mode & 0o077 for path in [checkout / "var", *(checkout / "var").iterdir()]} == {0}


@pytest.mark.real_server
def test_the_bookmark_of_run_opens_the_page_of_a_new_invite(
    checkout: Path, environment: dict[str, str], browser: Browser
) -> None:
    """From bin/run alone to a page in a browser: the bookmark makes an invite, and its QR code holds the same link."""
    with running(checkout, {**environment, "INVITES_RUN_PORT": str(free_port())}) as server:
        bookmark = server.wait_for(r"^    (http\S+\?key=\S+&redirect=true)$")[1]
        server.wait_for("^    201 Created$")
        with contextlib.closing(browser.new_page()) as page:
            page.goto(bookmark)
            token = page.url.partition("?")[2]
            assert page.url == f"{bookmark.partition('/invites_api')[0]}/invite?{token}"
            uri = f"xmpp:example.com?register;preauth={token}"
            assert page.locator("h1").inner_text() == "You are invited to Example"
            assert page.locator("a.button").get_attribute("href") == uri
            assert read_qr(page) == [uri]


@pytest.mark.real_server
def test_what_run_prints_works_as_printed(checkout: Path, environment: dict[str, str]) -> None:
    """The curl line of bin/run makes an invite, and its bookmark opens a new invite's page."""
    curl = shutil.which("curl")
    if curl is None:
        if "INVITES_TEST_CURL" in os.environ:
            pytest.fail("INVITES_TEST_CURL is set, and there is no curl")
        pytest.skip("there is no curl, which the line that bin/run prints is for: install curl")
    with running(checkout, {**environment, "INVITES_RUN_PORT": str(free_port())}) as server:
        server.wait_for("^    201 Created$")
        line = server.wait_for(r"^    (curl .+)$")[1]
        answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert answer.stdout.startswith("HTTP/1.1 201 "), answer
        bookmark = server.wait_for(r"^    (http\S+\?key=\S+&redirect=true)$")[1]
        page = subprocess.run([curl, "-sSLi", bookmark], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert page.stdout.startswith("HTTP/1.1 303 "), page
        assert "HTTP/1.1 200 " in page.stdout
        assert "xmpp:example.com?register;preauth=" in page.stdout


@pytest.mark.real_server
def test_a_second_run_keeps_settings_and_database_and_makes_another_key(
    checkout: Path, environment: dict[str, str]
) -> None:
    """bin/run makes settings and database once; the keys of its earlier starts go on being valid beside the new one."""
    keys, invites_api = [], checkout / "bin" / "invites-api"
    for port in (free_port(), 1):
        with running(checkout, {**environment, "INVITES_RUN_PORT": str(port)}) as server:
            server.wait_for("^    201 Created$")
            keys.append(KEY.findall(server.output))
    assert [len(found) for found in keys] == [1, 1]
    listed = run(invites_api, "list", "example.com", env=environment).stdout
    # Keys of one second are in the order of their ids.
    assert sorted(listed.splitlines()) == sorted(f"{found[0].partition('/')[0]}\tbin/run" for found in keys)


def test_a_taken_port_is_said_in_one_line(checkout: Path, environment: dict[str, str]) -> None:
    """Where something listens already bin/run says so, makes no key, and fails."""
    # With this option two servers can share a port, each unaware of the other.
    with socket.create_server(("127.0.0.1", 0), reuse_port=hasattr(socket, "SO_REUSEPORT")) as taken:
        port = taken.getsockname()[1]
        ended = run(checkout / "bin" / "run", env={**environment, "INVITES_RUN_PORT": str(port)})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(rf"bin/run: 127\.0\.0\.1 port {port} is taken: .+\n", ended.stderr)
    assert not (checkout / "var" / "invites.db").exists()


def test_a_mistake_in_the_settings_is_said_in_one_line(checkout: Path, environment: dict[str, str]) -> None:
    """bin/run leaves settings that are there alone, and says what is wrong with them."""
    settings = checkout / "var" / "invites-api.toml"
    settings.parent.mkdir()
    settings.write_text('[http]\nlistne = "127.0.0.1:5280"\n')
    ended = run(checkout / "bin" / "run", env=environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"bin/run: .+/invites-api\.toml: http\.listne: unknown key.*\n", ended.stderr)
    assert settings.read_text() == '[http]\nlistne = "127.0.0.1:5280"\n'


@pytest.fixture
def echo(checkout: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment whose invites-api prints its arguments and input, each between marks, and INVITES_CONFIG."""
    command = checkout.parent / "venv" / "bin" / "invites-api"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\nprintf "<%s>" "$@" "$(cat)"\nprintf "\\n%s" "${INVITES_CONFIG-}"\nexit 7\n')
    command.chmod(0o755)
    return {**environment, "INVITES_VENV": str(command.parent.parent)}


def test_the_command_gets_its_arguments_and_its_input_as_they_are(checkout: Path, echo: dict[str, str]) -> None:
    """bin/invites-api changes neither arguments nor standard input nor exit code."""
    ended = run(checkout / "bin" / "invites-api", "a  b", "", "*", "$HOME", "--", "-x\n", env=echo, text="in\nput")
    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout == "<a  b><><*><$HOME><--><-x\n><in\nput>\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "is_set"),
    [
        pytest.param(["list"], {}, True, id="nothing-said"),
        pytest.param(["--config", "other.toml", "list"], {}, False, id="config"),
        pytest.param(["list", "--database=memory:"], {}, False, id="database"),
        pytest.param(["create", "example.com", "--", "--config"], {}, True, id="a-name-like-an-option"),
        pytest.param(["list"], {"INVITES_DATABASE": "memory:"}, False, id="database-variable"),
    ],
)
def test_the_command_uses_what_run_made_unless_told_otherwise(
    checkout: Path, echo: dict[str, str], arguments: list[str], variables: dict[str, str], is_set: bool
) -> None:
    """bin/invites-api takes the settings of bin/run where neither options nor environment name any."""
    settings = checkout / "var" / "invites-api.toml"
    settings.parent.mkdir()
    settings.touch()
    ended = run(checkout / "bin" / "invites-api", *arguments, env={**echo, **variables})
    assert ended.stdout.splitlines()[1:] == ([str(settings)] if is_set else [])


def test_the_command_runs_without_the_settings_of_run(checkout: Path, echo: dict[str, str]) -> None:
    """bin/invites-api names no settings that are not there."""
    ended = run(checkout / "bin" / "invites-api", "list", env=echo)
    assert ended.stdout == "<list><>\n"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        pytest.param(None, r"no Python 3\.11 or later; looked on PATH for python3 and .*", id="none"),
        pytest.param(
            "case $2 in *print*) echo 3.9 ;; *) exit 1 ;; esac",
            r"no Python 3\.11 or later \(python3 is 3\.9\); looked on PATH for python3 and .*",
            id="old",
        ),
        pytest.param(
            'case $2 in *ensurepip*) exit 1 ;; *) exec "{python}" "$@" ;; esac',
            r"python3 has no module venv or ensurepip, .*apt install python3-venv\)",
            id="no-venv",
        ),
    ],
)
def test_a_missing_python_is_named(
    checkout: Path, environment: dict[str, str], python: str | None, message: str
) -> None:
    """Without a Python that can make a virtual environment the scripts say what is missing, and how to get it."""
    path = checkout.parent / "path"
    path.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "env", "flock", "sh"):
        if found := shutil.which(tool):
            (path / tool).symlink_to(found)
    if python is not None:
        (path / "python3").write_text(f"#!/bin/sh\n{python.replace('{python}', sys.executable)}\n")
        (path / "python3").chmod(0o755)
    ended = run(checkout / "bin" / "run", env={"PATH": str(path), "HOME": environment["HOME"]})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(rf"\S.*bin/run: {message}\n", ended.stderr), ended.stderr


def test_a_missing_network_is_named_and_the_next_start_tries_again(checkout: Path, environment: dict[str, str]) -> None:
    """Where pip gets nothing bin/run says so and fails, each time anew."""
    del environment["INVITES_VENV"]
    offline = {**environment, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    for makes_environment in (True, False):
        ended = run(checkout / "bin" / "run", env=offline)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ("Making a virtual environment" in ended.stderr) is makes_environment
        last = ended.stderr.splitlines()[-1]
        assert re.search("bin/run: pip could not install what invites-api needs: .+ needs the network", last), ended
    assert not (checkout / "var").exists()


def test_an_environment_that_is_up_to_date_is_left_alone(checkout: Path, environment: dict[str, str]) -> None:
    """bin/invites-api installs the project once, and again when setup.cfg has changed."""
    del environment["INVITES_VENV"]
    venv = checkout / ".venv" / "bin"
    venv.mkdir(parents=True)
    calls = checkout.parent / "calls"
    (venv / "python").write_text(f'#!/bin/sh\necho "$*" >>"{calls}"\n')
    (venv / "invites-api").write_text("#!/bin/sh\n")
    for script in venv.iterdir():
        script.chmod(0o755)

    def count_installs() -> int:
        assert run(checkout / "bin" / "invites-api", env=environment).returncode == 0
        return sum("-m pip install" in call for call in calls.read_text().splitlines())

    assert [count_installs(), count_installs()] == [1, 1]
    with (checkout / "setup.cfg").open("a") as setup:
        setup.write("\n")
    assert [count_installs(), count_installs()] == [2, 2]
