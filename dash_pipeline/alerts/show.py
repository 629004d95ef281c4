"""Alerts as a person reads them in a terminal, and as a program reads them.

Belongs here: which alerts, and rich. Does not belong here: SQL (`dash_pipeline/storage/alerts.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Column, Table

from dash_pipeline.alerts.rules import SEVERITIES, rank
from dash_pipeline.errors import DashError
from dash_pipeline.storage.alerts import newest
from dash_pipeline.storage.timescale import Connection

Document = dict[str, Any]


def alerts(
    conn: Connection,
    severity: str | None = None,
    limit: int = 50,
    chain: str | None = None,
    *,
    active_only: bool = False,
) -> list[Document]:
    """The alerts of at least this severity, newest first, ready for JSON: pool, token, kind, severity, chain time
    (`ts`) and `raised_at`, block, transaction, wallets, evidence, predictions, `retracted`, deliveries.

    Raises DashError for a severity that is none.
    """
    if severity is not None and severity not in SEVERITIES:
        raise DashError(f"--severity: {severity} is not one of {', '.join(SEVERITIES)}")
    return newest(conn, SEVERITIES[rank(severity or SEVERITIES[0]) :], limit, chain, active_only=active_only)


def alerts_table(found: Sequence[Document]) -> Table:
    """A line for each alert; times are UTC."""
    table = Table(
        Column("raised", no_wrap=True), "severity", "what", Column("pool", no_wrap=True, min_width=42),
        Column("block", justify="right"), "chain time", Column("risk", justify="right"), "told",
        box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True,
    )  # fmt: skip
    for one in found:
        table.add_row(
            _time(one["raised_at"]),
            f"{one['severity']} (taken back)" if one["retracted"] else one["severity"],
            one["kind"].replace("_", " "),
            one["pool"],
            f"{one['block_number']:,}",
            _time(one["ts"]),
            _risk(one),
            ", ".join(_told(delivery) for delivery in one["deliveries"]),
            style="dim" if one["retracted"] else None,
        )
    return table


def _time(text: str) -> str:
    return text[:19].replace("T", " ")


def _risk(alert: Document) -> str:
    """What `pool_risk` says of the pool."""
    for prediction in alert["predictions"]:
        if prediction["model"] == "pool_risk" and prediction["subject"] == alert["pool"]:
            return "?" if prediction["score"] is None else f"{prediction['score']:.0%}"
    return ""


def _told(delivery: Document) -> str:
    """A route, and how far it has got."""
    if delivery["delivered_at"]:
        state = "" if delivery["event"] == "raised" else " (taken back)"
    elif delivery["dropped"]:
        state = f": {delivery['dropped']}"
    else:
        state = f" waits: {delivery['error']}" if delivery["error"] else " waits"
    return f"{delivery['route']}{state}"
