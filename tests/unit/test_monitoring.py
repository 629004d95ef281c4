"""One list of metrics: names by Prometheus' conventions; dashboard and rules know no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dash_pipeline.dashboard import FILE, dashboard, text
from dash_pipeline.exporter import merged, textfiles
from dash_pipeline.metrics import BUCKETS_S, METRICS, Collected, Histogram, families, publish

MONITORING = FILE.parent
NAME = re.compile(r"\bdash_[a-z_]+")


def named(content: str) -> set[str]:
    """The metrics that a text names; not files, folders or labels."""
    return {name.removesuffix("_bucket") for name in NAME.findall(content) if name != "dash_pipeline"}


def test_names_follow_the_conventions() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"dash(_[a-z]+)+", metric.name), metric
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric
        if metric.unit in ("seconds", "bytes"):
            assert metric.name.removesuffix("_total").endswith(metric.unit), metric
        assert metric.help.endswith("."), metric
        assert "le" not in metric.labels


def test_the_dashboard_is_made_from_the_list() -> None:
    assert FILE.read_text() == text(), "python -m dash_pipeline.dashboard"
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    assert set().union(*map(named, queries)) == set(METRICS)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)


def test_rules_and_their_tests_know_no_other_metrics() -> None:
    for file in ("rules.yaml", "rules.test.yaml", "rules.days.test.yaml"):
        found = named((MONITORING / file).read_text())
        assert found
        assert found <= set(METRICS), file


def test_every_rule_is_explained_and_tested() -> None:
    rules = set(re.findall(r"alert: (\w+)", (MONITORING / "rules.yaml").read_text()))
    tests = "".join((MONITORING / f"rules{part}.test.yaml").read_text() for part in ("", ".days"))
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert {rule for rule in rules if rule not in tests} == set()
    assert {rule for rule in rules if f"`{rule}`" not in page} == set()


def test_a_histogram_is_cumulated_and_adds_up() -> None:
    one = Histogram((1,) + (0,) * (len(BUCKETS_S) - 1) + (2,), 700.0)
    registry = CollectorRegistry()
    registry.register(Collected(families([("dash_lane_latency_seconds", ("c", "c-0", "output"), one + one)])))
    page = generate_latest(registry).decode()
    assert 'dash_lane_latency_seconds_bucket{chain="c",lane="c-0",le="0.005",stage="output"} 2.0' in page
    assert 'dash_lane_latency_seconds_bucket{chain="c",lane="c-0",le="300.0",stage="output"} 2.0' in page
    assert 'dash_lane_latency_seconds_count{chain="c",lane="c-0",stage="output"} 6.0' in page
    assert 'dash_lane_latency_seconds_sum{chain="c",lane="c-0",stage="output"} 1400.0' in page


def test_samples_that_are_not_in_the_list_are_a_mistake() -> None:
    with pytest.raises(KeyError):
        families([("dash_surprise", (), 1)])
    with pytest.raises(ValueError, match="labels"):
        families([("dash_lanes", (), 1)])


def test_files_of_lanes_are_merged_and_old_ones_go(tmp_path: Path) -> None:
    for lane, events in (("c-0", 3), ("c-1", 4)):
        publish(None, tmp_path, "dash_lane", {"lane": lane}, [("dash_lane_events_total", ("c", lane), events)])
    (tmp_path / "broken.prom").write_text("this is not { a metric")
    registry = CollectorRegistry()
    registry.register(Collected(merged(textfiles(tmp_path, aged_s=60))))
    page = generate_latest(registry).decode()
    assert page.count("# TYPE dash_lane_events_total counter") == 1
    assert 'dash_lane_events_total{chain="c",lane="c-0"} 3.0' in page
    assert 'dash_lane_events_total{chain="c",lane="c-1"} 4.0' in page
    assert list(tmp_path.glob("*.tmp*")) == []
    assert textfiles(tmp_path, aged_s=-1) == []
    assert list(tmp_path.iterdir()) == []
    assert textfiles(None, aged_s=60) == textfiles(tmp_path / "nowhere", aged_s=60) == []
