"""The shapes of tests/wsgi/test_canary.py at every level of the log, in both formats: where all works, and all fails.

What is written is taken from standard error itself, so that the words of other packages, and of Python, are part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import Client

from invites_core.stores.memory import MemoryStore
from invites_wsgi import App, Settings
from invites_wsgi.logs import configure_logging, scrub_uncaught_errors
from invites_wsgi.metrics import Metrics, make_metrics_app
from tests.wsgi.callers import EVERYTHING
from tests.wsgi.support import ask, restored_hooks
from tests.wsgi.test_canary import Canaries, Shape, check_answers, make_calls, make_canaries, make_shapes, to_text

LEVELS = ("debug", "info", "warning", "error")


class CarelessStore(MemoryStore):
    """A store of which every verb fails, once it is told to, with what it was asked for in its message."""

    fails_with = ""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        message = object.__getattribute__(self, "fails_with")
        if not message or name.startswith("_") or not callable(found):
            return found

        def fail(*arguments: object, **named: object) -> None:
            try:
                raise KeyError(message, *arguments)
            except KeyError as error:
                raise RuntimeError(f"{name} of {arguments} {named}: GET /invites_api?key={message}") from error

        return fail


def make_send(app: App, *, is_broken: bool) -> Callable[[Shape], str]:
    """Return what sends a shape and gives back all of the answer."""

    def send(shape: Shape) -> str:
        answer = ask(app, shape.target, method=shape.method, headers=shape.headers, body=shape.body.encode("latin-1"))
        assert answer.status < 500 or is_broken
        return to_text(answer)

    return send


def read_metrics(metrics: Metrics) -> str:
    """Return the metrics as they are shown."""
    metrics.sample()
    return Client(make_metrics_app(metrics)).get("/metrics").get_data(as_text=True)


@pytest.mark.parametrize("is_broken", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_at_no_level_a_secret_is_told(
    capfd: pytest.CaptureFixture[str], log_format: str, level: str, is_broken: bool
) -> None:
    """Neither what the process writes nor an answer nor a metric holds a canary; lines are there as the level says."""
    store, metrics = CarelessStore(), Metrics()
    canaries = make_canaries(store, EVERYTHING)
    app = App(Settings(database="memory:"), key_store=store, invite_store=store, metrics=metrics)
    if is_broken:
        store.fails_with = f"{canaries.issued.combined} {canaries.token}"
    with restored_hooks():
        scrub_uncaught_errors()
        configure_logging(log_format, level)
        sent = check_answers(canaries, make_shapes(canaries.values), make_send(app, is_broken=is_broken))
        called = call_everything(app, canaries)
    written = "".join(capfd.readouterr())
    assert sent >= 1000
    assert called >= 150
    assert written.count("\n") >= (sent if level in ("debug", "info") else 100 if is_broken else 0)
    assert ("RuntimeError: " in written) == is_broken
    canaries.assert_not_in(written)
    shown = read_metrics(metrics)
    assert "invites_api_requests_total" in shown
    assert canaries.issued.key.id not in shown
    canaries.assert_not_in(shown)


def call_everything(app: App, canaries: Canaries) -> int:
    """Make the calls that work, which tell tokens to who asks and may, and return how many there were."""
    count = 0
    for shape in make_calls(canaries):
        answer = ask(app, shape.target, method=shape.method, headers=shape.headers, body=shape.body.encode())
        if answer.status == 201:
            canaries.new_tokens.append(answer.token)
        count += 1
    return count
