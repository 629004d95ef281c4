"""Predictions in the database.

Belongs here: SQL on intel.predictions. Does not belong here: making them (`dash_pipeline/predictions/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from dash_pipeline.storage.timescale import Connection

#: The version of a prediction for which there was no model.
NO_MODEL = "none"


def utc(time: str) -> str:
    """SQL: a time as people and programs get it."""
    return f"to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"


def as_hex(value: str) -> str:
    """SQL: bytes as `0x...`; null stays null."""
    return f"'0x' || encode({value}, 'hex')"


_SHOWN = f"""
 'model', p.model, 'version', p.version, 'subject', {as_hex("p.subject")}, 'subject_kind', p.subject_kind,
 'score', CASE WHEN p.score BETWEEN 0 AND 1 THEN p.score END, 'reason', p.reason,
 'contributions', (SELECT coalesce(jsonb_agg(jsonb_build_array(c.key, c.value) ORDER BY c.size DESC, c.key), '[]')
  FROM (SELECT key, value, abs(value::float8) AS size FROM jsonb_each(p.contributions)
  WHERE jsonb_typeof(value) = 'number' ORDER BY size DESC, key LIMIT 5) c),
 'predicted_at', {utc("p.predicted_at")}"""
#: SQL: a row `p` of intel.predictions as people and programs get it. What a model says is a probability; whatever else
#: it may be does not fit JSON.
PREDICTION = f"jsonb_build_object({_SHOWN})"


@dataclass(frozen=True)
class Prediction:
    """What a model said of a pool or wallet. `score`: calibrated probability, None where `reason` says why there is
    none; `features`: raw columns it was made from; `contributions`: feature -> SHAP value in log-odds, the largest
    first."""

    anomaly_id: bytes
    model: str
    subject: bytes
    subject_kind: str
    chain: str
    as_of: datetime
    version: str = NO_MODEL
    score: float | None = None
    reason: str | None = None
    features: Mapping[str, float | None] = field(default_factory=dict)
    contributions: Mapping[str, float] = field(default_factory=dict)


def write_predictions(conn: Connection, predictions: Iterable[Prediction], run_id: str) -> int:
    """Store predictions; one that has a score already stays as it was. How many were written."""
    with conn.pipeline():
        cursors = [
            conn.execute(
                "INSERT INTO intel.predictions AS p (anomaly_id, model, subject, subject_kind, chain, as_of, version,"
                " score, reason, features, contributions, run_id)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (anomaly_id, model, subject) DO UPDATE SET as_of = excluded.as_of,"
                " version = excluded.version, score = excluded.score, reason = excluded.reason,"
                " features = excluded.features, contributions = excluded.contributions, run_id = excluded.run_id,"
                " predicted_at = clock_timestamp() WHERE p.score IS NULL AND excluded.score IS NOT NULL",
                (
                    one.anomaly_id, one.model, one.subject, one.subject_kind, one.chain, one.as_of, one.version,
                    one.score, one.reason, Jsonb(one.features), Jsonb(one.contributions), run_id,
                ),
                prepare=True,
            )
            for one in predictions
        ]  # fmt: skip
    return sum(cursor.rowcount for cursor in cursors)


def scored(conn: Connection, anomalies: Sequence[bytes]) -> set[tuple[bytes, str, bytes]]:
    """(anomaly, model, subject) of the predictions with a score that there are for these anomalies."""
    rows = conn.execute(
        "SELECT anomaly_id, model, subject FROM intel.predictions WHERE anomaly_id = ANY(%s) AND score IS NOT NULL",
        (list(anomalies),),
    )
    return set(rows.fetchall())


def ask_newest(
    limit: int,
    *,
    anomaly: bytes | None = None,
    subject: tuple[str, bytes] | None = None,
    chain: str | None = None,
    after: tuple[datetime, bytes, str, bytes] | None = None,
) -> tuple[str, dict[str, Any]]:
    """The query, and its parameters, for the newest predictions of an anomaly's alert, or of a subject (pool or wallet,
    and its address): rows of (predicted_at, anomaly_id, model, subject, document). `after`: the first four columns of
    the row before the first."""
    query = (
        "SELECT p.predicted_at, p.anomaly_id, p.model, p.subject, jsonb_build_object('alert', encode(p.anomaly_id,"
        f" 'hex'), 'chain', p.chain, 'as_of', {utc('p.as_of')}, {_SHOWN}) FROM intel.predictions p"
        " WHERE (%(chain)s::text IS NULL OR p.chain = %(chain)s)"
    )
    params: dict[str, Any] = {"chain": chain, "limit": limit}
    if anomaly is not None:
        query, params["anomaly"] = f"{query} AND p.anomaly_id = %(anomaly)s", anomaly
    if subject is not None:
        query += " AND p.subject_kind = %(kind)s AND p.subject = %(subject)s"
        params |= {"kind": subject[0], "subject": subject[1]}
    if after is not None:
        query += (
            " AND p.predicted_at <= %(at)s AND (p.predicted_at < %(at)s"
            " OR (p.anomaly_id, p.model, p.subject) > (%(id)s, %(model)s, %(of)s))"
        )
        params |= dict(zip(("at", "id", "model", "of"), after, strict=True))
    order = "p.predicted_at DESC, p.anomaly_id, p.model, p.subject"
    return f"{query} ORDER BY {order} LIMIT %(limit)s", params
