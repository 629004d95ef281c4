"""Models for people: versions, trainings, evaluations on the terminal, and the model card of the UI.

Belongs here: rows for JSON, tables, Markdown. Does not belong here: what is shown (`registry.py`, `lifecycle.py`).
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.models.catalogue import MODELS, spec_of
from dash_pipeline.models.lifecycle import Training
from dash_pipeline.models.registry import Registry
from dash_pipeline.settings import Settings

log = logging.getLogger(__name__)

#: Metrics in tables, as the card names them.
_SHOWN = ("auc", "accuracy", "precision", "recall", "f1", "mcc")
_LISTED = ("auc", "accuracy", "mcc")


def versions(settings: Settings, model: str = "") -> list[dict[str, Any]]:
    """Every version of a model, or of all, newest first: `model`, `version`, `champion` (whether it is), `saved_at`,
    `bytes`, `labels`, `rows`, `positives`, `metrics` (out-of-fold)."""
    registry, found = Registry(settings), []
    for name in [spec_of(model).name] if model else MODELS:
        try:
            champion = registry.champion(name)
        except Unavailable:
            raise
        except DashError as error:  # what there is to promote in its place must be seen
            log.error("%s", error)
            champion = None
        for one in registry.versions(name):
            data = one.card.get("data", {})
            found.append(
                {
                    "model": name,
                    "version": one.version,
                    "champion": champion is not None and champion.version == one.version,
                    "saved_at": one.saved_at,
                    "bytes": one.bytes,
                    "labels": data.get("source"),
                    "rows": data.get("rows"),
                    "positives": data.get("positives"),
                    "metrics": one.card.get("metrics", {}),
                }
            )
    return found


def versions_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """A row per version, the champion with a star; figures are out-of-fold."""
    table = _table("model", "version", "rows", *_LISTED)
    for one in found:
        version = f"{one['version']} {'*' if one['champion'] else ''}"
        figures = (_figure(one["metrics"].get(name)) for name in _LISTED)
        table.add_row(one["model"], version, _count(one["rows"]), *figures)
    table.caption = "* champion" if found else "no version yet; `dash-pipeline models train MODEL` makes one"
    table.caption_justify = "left"
    return table


def training_json(done: Training) -> dict[str, Any]:
    """What a training made, without its pictures."""
    return {name: value for name, value in asdict(done).items() if name != "plots"}


def training_table(done: Training) -> Table:
    """What a training reached on rows it did not see, with 95 % intervals."""
    table = _table("out of fold", done.model, "95 %")
    for name in _SHOWN:
        low, high = done.card["intervals_95"].get(name, (None, None))
        interval = f"{_figure(low)} to {_figure(high)}" if low is not None else ""
        table.add_row(name, _figure(done.metrics.get(name)), interval)
    table.add_row("rows", _count(done.rows), "")
    table.add_row("positives", _count(done.positives), "")
    return table


def card_markdown(done: Training) -> str:
    """A version's card with its pictures in it: data, metrics with 95 % intervals, importance, parameters."""
    card, data = done.card, done.card["data"]
    metrics = [
        f"| {name} | {_figure(value)} | {' to '.join(map(_figure, card['intervals_95'].get(name, ())))} |"
        for name, value in card["metrics"].items()
        if name not in ("rows", "positives")
    ]
    window = f", {data['from']} to {data['until']}" if "from" in data else ""
    lines = [
        f"## {done.model}: {card['title']}",
        f"Version `{done.version}`: {'champion' if done.promoted else 'not promoted'}; {done.verdict}.",
        f"Data: {data['rows']:,} rows, {data['positives']:,} positive{window}; {data['source']}, sha256"
        f" `{data['sha256']}`. Split by {card['split']}, seed {card['seed']}; {data['held_out']:,} rows held out.",
        "\n".join(["| out of fold | | 95 % |", "|---|---|---|", *metrics]),
        *(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})" for name, png in done.plots.items()),
        "Parameters: " + ", ".join(f"{name} {value}" for name, value in card["parameters"].items()),
    ]
    return "\n\n".join(lines)


def metrics_table(found: Mapping[str, Any]) -> Table:
    """What a version reaches on labelled rows."""
    table = _table(found["model"], found["version"])
    for name in (*_SHOWN, "average_precision", "brier", "log_loss"):
        table.add_row(name, _figure(found[name]))
    table.add_row("rows", _count(found["rows"]))
    table.add_row("positives", _count(found["positives"]))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for name in others:
        table.add_column(name, justify="left" if name == "version" else "right", no_wrap=True)
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
