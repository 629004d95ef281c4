"""The Grafana dashboard, made from the list of metrics.

Belongs here: the page's JSON. Written to `deployments/monitoring/dashboard.json` by
`python -m dash_pipeline.dashboard`; a test fails when the file is not this. Does not belong here: metrics
(`metrics.py`), alert rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dash_pipeline.metrics import METRICS, Metric, Source

FILE = Path(__file__).parents[1] / "deployments" / "monitoring" / "dashboard.json"

_ROWS: dict[Source, str] = {
    "lane": "Lanes",
    "platform": "Chains, search, alerts, archive",
    "dagster": "Dagster: runs, backups, drills",
    "engine": "Prediction engine: its last run",
    "machine": "Machine",
    "exporter": "Sources",
}
_UNITS = {"seconds": "s", "bytes": "bytes", "Unix time": "dateTimeFromNow"}
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _IN_ROW = 8, 7, 3


def dashboard() -> dict[str, Any]:
    """A row for each source, a panel for each metric in it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for source, title in _ROWS.items():
        of_source = [metric for metric in METRICS.values() if metric.source == source]
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "id": len(panels) + 1}
            | {"gridPos": {"h": 1, "w": 24, "x": 0, "y": y}}
        )
        for i, metric in enumerate(of_source):
            place = {"h": _HEIGHT, "w": _WIDTH, "x": _WIDTH * (i % _IN_ROW), "y": y + 1 + _HEIGHT * (i // _IN_ROW)}
            panels.append(_panel(metric) | {"id": len(panels) + 1, "gridPos": place})
        y += 1 + _HEIGHT * -(-len(of_source) // _IN_ROW)
    return {
        "title": "Dash Pipeline",
        "uid": "dash-pipeline",
        "tags": ["dash"],
        "schemaVersion": 39,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}, _chain()]},
        "panels": panels,
    }


def _chain() -> dict[str, Any]:
    return {
        "name": "chain", "type": "query", "datasource": _DATASOURCE, "includeAll": True, "multi": True,
        "query": "label_values(dash_commit_age_seconds, chain)", "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _panel(metric: Metric) -> dict[str, Any]:
    unit = _UNITS.get(metric.unit, "short")
    if metric.type == "counter":
        unit = "Bps" if metric.unit == "bytes" else "percentunit" if metric.unit == "seconds" else "cps"
    title = metric.name.removeprefix("dash_").removesuffix("_total").replace("_", " ")
    if metric.type == "counter":
        title += " per second"
    return {
        "type": "timeseries",
        "title": title,
        "description": metric.help,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"spanNulls": 120_000}}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expr, "legendFormat": legend, "datasource": _DATASOURCE}
            for i, (expr, legend) in enumerate(_queries(metric))
        ],
    }


def _queries(metric: Metric) -> list[tuple[str, str]]:
    """(query, legend); what lanes and topics count is summed up by chain, or a busy one would fill the panel."""
    shown = [label for label in metric.labels if label not in ("lane", "topic", "partition")]
    if "topic" in metric.labels and "chain" not in metric.labels:
        shown = ["topic"]
    chosen = '{chain=~"$chain"}' if "chain" in metric.labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in shown) or metric.unit
    by = f"sum by ({', '.join(shown)}) " if shown != list(metric.labels) else ""
    rate = f"rate({metric.name}{chosen}[$__rate_interval])"
    if metric.type == "histogram":
        buckets = f"sum by ({', '.join([*shown, 'le'])}) (rate({metric.name}_bucket{chosen}[$__rate_interval]))"
        return [(f"histogram_quantile({q}, {buckets})", f"{legend} p{round(q * 100)}") for q in (0.5, 0.99)]
    value = rate if metric.type == "counter" else f"{metric.name}{chosen}"
    return [(f"{by}({value})" if by else value, legend)]


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
