"""Rows that somebody still needs where they are, and what stays in the database when they go.

Belongs here: what is so of some tables only. Does not belong here: days (`retain.py`), taking them out (`export.py`).

An anomaly stays until all that follows from it has followed: it is published, predicted on, and its alert agrees with
it and has arrived. Its predictions stay as long. Of both, the database keeps a little: which anomalies there have been,
so that a replay of old messages finds none anew; and what an alert shows of its predictions, so that reading or telling
of an old one needs no archive.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from dash_pipeline.storage import alerts, anomalies
from dash_pipeline.storage.timescale import Connection

#: Table -> SQL that is true of a row `t` which is needed.
NEEDED = {
    "anomalies": (
        "(t.published_revision < t.revision OR CASE WHEN EXISTS (SELECT FROM intel.alerts a WHERE a.id = t.id) THEN"
        f"  EXISTS (SELECT FROM intel.alerts a WHERE a.id = t.id AND {alerts.UNSETTLED.format(anomaly='t', alert='a')})"
        " ELSE t.retracted_at IS NULL"
        "  AND NOT EXISTS (SELECT FROM intel.predictions p WHERE p.anomaly_id = t.id) END)"
    ),
    "predictions": "EXISTS (SELECT FROM intel.anomalies n WHERE n.id = t.anomaly_id)",
}


def _before_anomalies(conn: Connection, chain: str, lo: datetime, hi: datetime) -> None:
    anomalies.remember_archived(conn, chain, lo, hi)
    alerts.hold(conn, chain)


#: Table -> what is done in the transaction that takes rows of a chain's day out, before: chain, from, until.
BEFORE: dict[str, Callable[[Connection, str, datetime, datetime], None]] = {
    "anomalies": _before_anomalies,
    "predictions": alerts.keep_predictions,
}
