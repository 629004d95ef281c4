"""Alerts as a person reads them in a terminal, and as a program reads them.

Belongs here: which alerts, and rich. Does not belong here: SQL (`dash_pipeline/storage/alerts.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """Of each alert what, when (the chain's time, UTC), the pool, who is behind it, who was told, and the pool's risk.
    Fits into 80 columns."""
    table = Table(
        "alert", Column("pool, wallets, told", no_wrap=True), Column("risk", justify="right"),
        box=None, pad_edge=False,
    )  # fmt: skip
    for one in found:
        taken_back = " (taken back)" if one["retracted"] else ""
        what = f"{one['severity']} {one['kind'].replace('_', ' ')}{taken_back}"
        when = f"{one['ts'][:16].replace('T', ' ')}, block {one['block_number']}"
        people = [*one["wallets"], *map(_told, one["deliveries"])]
        where = "\n".join([one["pool"], *(f"  {who}" for who in people)])
        table.add_row(f"{what}\n{when}", where, _risk(one), style="dim" if one["retracted"] else None)
    return table


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
