"""What the champions say about pools and wallets.

Belongs here: which model is asked about whom, as of when. Does not belong here: features and scoring
(`dash_pipeline/models/`), storing (`storage/predictions.py`).

A pool is looked at as of the anomaly's block, with that block: what a reader of the alert wants to know is how it looks
now. Rows are computed by the functions that made the training data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

import polars as pl

from dash_pipeline.chains import Chain
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.champions import Champions
from dash_pipeline.models.liquidity_outlook import outlook_raw
from dash_pipeline.models.pool_features import NO_TOKENS, PoolHistory, pool_raw
from dash_pipeline.models.wallet_features import wallet_raw
from dash_pipeline.storage.anomalies import Stored
from dash_pipeline.storage.pool_history import pool_history
from dash_pipeline.storage.predictions import NO_MODEL, Prediction, scored
from dash_pipeline.storage.timescale import Connection
from dash_pipeline.storage.wallet_history import wallet_history

POOL_MODELS = ("pool_risk", "liquidity_outlook")
WALLET_MODEL = "wallet_risk"
# Said beside the score, which is made of what is known.
_SCORED_ANYWAY = (NO_TOKENS,)


def predict(conn: Connection, registered: Chain, champions: Champions, anomalies: Sequence[Stored]) -> list[Prediction]:
    """A prediction for each anomaly of one chain, each model of pools and its pool, and for each of its wallets; what
    has a score already is left out. Subjects without a history are predictions without a score, with the reason."""
    done = scored(conn, [one.id for one in anomalies])
    by_time: dict[datetime, list[Stored]] = defaultdict(list)
    for one in anomalies:
        by_time[one.ts].append(one)
    predictions: list[Prediction] = []
    for as_of, some in sorted(by_time.items()):
        asked = {
            (model, subject): [one.id for one in some if subject in (one.pool, *one.wallets)]
            for one in some
            for model, subject in [*((m, one.pool) for m in POOL_MODELS), *((WALLET_MODEL, w) for w in one.wallets)]
            if (one.id, model, subject) not in done
        }
        pools = list(dict.fromkeys(subject for model, subject in asked if model in POOL_MODELS))
        wallets = list(dict.fromkeys(subject for model, subject in asked if model == WALLET_MODEL))
        said = [
            *score_pools(conn, registered, champions, pools, as_of),
            *score_wallets(conn, registered, champions, wallets, as_of),
        ]
        predictions += [
            replace(one, anomaly_id=anomaly_id)
            for one in said
            for anomaly_id in asked.get((one.model, one.subject), ())
        ]
    return predictions


def score_pools(
    conn: Connection, registered: Chain, champions: Champions, pools: Sequence[bytes], as_of: datetime
) -> list[Prediction]:
    """What each model of pools says of these, as of a moment of the chain's time; no anomaly's."""
    if not pools:
        return []
    quotes = [bytes.fromhex(token.address[2:]) for token in registered.quote_tokens]
    history = pool_history(conn, registered.name, pools, as_of, quotes)
    return [
        prediction
        for model in POOL_MODELS
        for prediction in _predictions(
            champions,
            model,
            registered.name,
            as_of,
            _pool_rows(model, history, pools, as_of).rename({"pool": "subject"}),
        )
    ]


def score_wallets(
    conn: Connection, registered: Chain, champions: Champions, wallets: Sequence[bytes], as_of: datetime
) -> list[Prediction]:
    """What the model of wallets says of these, as of a moment of the chain's time; no anomaly's."""
    if not wallets:
        return []
    raw = wallet_raw(wallet_history(conn, registered.name, wallets, as_of), wallets, as_of)
    return list(_predictions(champions, WALLET_MODEL, registered.name, as_of, raw.rename({"wallet": "subject"})))


def _pool_rows(model: str, history: PoolHistory, pools: Sequence[bytes], as_of: datetime) -> pl.DataFrame:
    if model == "pool_risk":
        return pool_raw(history)
    schema = {"pool": pl.Binary, "as_of": pl.Datetime("us", "UTC")}
    return outlook_raw(history, pl.DataFrame({"pool": pools, "as_of": [as_of] * len(pools)}, schema))


def _predictions(
    champions: Champions, model: str, chain: str, as_of: datetime, raw: pl.DataFrame
) -> Iterable[Prediction]:
    """`raw`: subject, the model's raw columns, and the reason why a row cannot be scored (null where it can)."""
    spec, scorer = MODELS[model], champions.get(model)
    columns = {name: raw[name].to_numpy() for name in spec.columns}
    scores = scorer.score(columns) if scorer else None
    parts = scorer.explain(columns) if scorer else None
    for i, (subject, unknown) in enumerate(zip(raw["subject"], raw["reason"], strict=True)):
        reason = unknown or (None if scorer else champions.problem(model) or "no champion yet")
        unscorable = scores is None or (reason is not None and reason not in _SCORED_ANYWAY)
        score = None if unscorable or scores is None else float(scores[i])
        yield Prediction(
            b"",
            model,
            subject,
            spec.subject,
            chain,
            as_of,
            scorer.version if scorer else NO_MODEL,
            score,
            reason,
            {name: _json(values[i]) for name, values in columns.items()},
            dict(parts[i]) if parts is not None and score is not None else {},
        )


def _json(value: float) -> float | None:
    """JSON knows neither NaN nor infinities."""
    return float(value) if math.isfinite(value) else None
