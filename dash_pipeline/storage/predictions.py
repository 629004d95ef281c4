"""Predictions in the database.

Belongs here: SQL on intel.predictions. Does not belong here: making them (`dash_pipeline/predictions/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from psycopg.types.json import Jsonb

from dash_pipeline.storage.timescale import Connection

#: The version of a prediction for which there was no model.
NO_MODEL = "none"


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
