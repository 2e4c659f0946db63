"""The page on metrics has every metric, and the alerts name nothing that is not there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from invites_wsgi.metrics import Metrics
from tests.docs.pages import ROOT, find_code, read_rows, read_sections

PAGE = ROOT / "docs" / "metrics.md"
RULES = ROOT / "docs" / "examples" / "prometheus-rules.yml"


def list_metrics() -> dict[str, tuple[str, list[str]]]:
    """Return the type and the labels of each metric, by its name as it is shown."""
    metrics = Metrics()
    labels = {one._name: list(one._labelnames) for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)}
    labels["invites_api_build_info"] = ["version", "python"]
    return {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, labels[family.name])
        for family in metrics.registry.collect()
    }


@pytest.fixture
def rules() -> list[dict[str, Any]]:
    """The alerts of the example."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML (pip install pyyaml)")
    [group] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_every_metric_has_its_line() -> None:
    """The table names each metric with its type and labels, and no others."""
    rows = read_rows(read_sections(PAGE)["The table"])
    assert {find_code(row[0])[0]: (row[1], find_code(row[2])) for row in rows} == list_metrics()


def test_the_alerts_name_metrics_that_are_there(rules: list[dict[str, Any]]) -> None:
    """Each metric and each of its labels in an alert is one of the table."""
    known = list_metrics()
    for rule in rules:
        for name, selected in re.findall(r"(invites_api_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            base = name.removesuffix("_bucket")
            assert base in known, rule["alert"]
            assert (known[base][0] == "histogram") == (base != name)
            assert set(re.findall(r"(\w+)=", selected)) <= set(known[base][1]), rule["alert"]


def test_every_alert_has_its_line(rules: list[dict[str, Any]]) -> None:
    """The page says of each alert what it means and what to do, in their order."""
    rows = read_rows(read_sections(PAGE)["Alerts"])
    assert [find_code(row[0])[0] for row in rows] == [rule["alert"] for rule in rules]
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
