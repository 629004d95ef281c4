"""What the champions say about pools and wallets.

Belongs here: which model is asked about whom, as of when. Does not belong here: features and scoring
(`dash_pipeline/models/`), storing (`storage/predictions.py`).

A pool is looked at as of the anomaly's block, with that block: what a reader of the alert wants to know is how it looks
now. Rows are computed by the functions that made the training data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import polars as pl

from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.champions import Champions
from dash_pipeline.models.liquidity_outlook import MOMENTS, outlook_raw
from dash_pipeline.models.pool_features import NO_TOKENS, PoolHistory, pool_raw, token_creators
from dash_pipeline.models.wallet_features import WalletHistory, wallet_raw
from dash_pipeline.settings import Settings
from dash_pipeline.storage.anomalies import Stored
from dash_pipeline.storage.pool_history import Moment, busy_wallets, made_later, pool_history
from dash_pipeline.storage.predictions import NO_MODEL, Prediction, scored
from dash_pipeline.storage.timescale import Connection
from dash_pipeline.storage.wallet_history import wallet_history

POOL_MODELS = ("pool_risk", "liquidity_outlook")
WALLET_MODEL = "wallet_risk"
History = TypeVar("History", PoolHistory, WalletHistory)
#: Why there is no score yet where the archive was not to be read.
ARCHIVED = "part of the history is archived"
# Said beside the score, which is made of what is known.
_SCORED_ANYWAY = (NO_TOKENS,)


def predict(
    conn: Connection,
    registered: Chain,
    champions: Champions,
    anomalies: Sequence[Stored],
    archive: Settings | None = None,
) -> list[Prediction]:
    """A prediction for each anomaly of one chain, each model of pools and its pool, and for each of its wallets; what
    has a score already is left out. Subjects without a history are predictions without a score, with the reason.

    `archive`: the settings that S3 is reached by. Without them no object is read, and the reason of subjects that have
    archived rows is ARCHIVED; where an object cannot be read the reason says so. None is scored by half its history.
    """
    done = scored(conn, [one.id for one in anomalies])
    asked: dict[tuple[str, bytes, datetime], list[bytes]] = defaultdict(list)
    for one in anomalies:
        subjects = [(WALLET_MODEL, wallet) for wallet in dict.fromkeys(one.wallets)]
        for model, subject in [*((model, one.pool) for model in POOL_MODELS), *subjects]:
            if (one.id, model, subject) not in done:
                asked[model, subject, one.ts].append(one.id)
    moments = sorted({(as_of, subject, model in POOL_MODELS) for model, subject, as_of in asked})
    said = [
        *_pools_at(
            conn, registered, champions, [(pool, as_of) for as_of, pool, is_pool in moments if is_pool], archive
        ),
        *_wallets_at(
            conn, registered, champions, [(wallet, as_of) for as_of, wallet, is_pool in moments if not is_pool], archive
        ),
    ]
    return [
        replace(one, anomaly_id=anomaly_id)
        for one in said
        for anomaly_id in asked.get((one.model, one.subject, one.as_of), ())
    ]


def score_pools(
    conn: Connection,
    registered: Chain,
    champions: Champions,
    pools: Sequence[bytes],
    as_of: datetime,
    archive: Settings | None = None,
) -> list[Prediction]:
    """What each model of pools says of these, as of a moment of the chain's time; no anomaly's. `archive` as in
    `predict`."""
    if not pools:
        return []
    history, problem = _read(
        lambda some: pool_history(conn, registered.name, pools, as_of, registered.quotes, some), archive
    )
    asked = [(pool, as_of) for pool in pools]
    moments = {pool: as_of for pool in pools if pool not in history.unread}
    return [
        *_unread(POOL_MODELS, registered.name, asked, history.unread, problem),
        *_said_of_pools(champions, registered, [_pool_rows(history, moments)] if moments else []),
    ]


def score_wallets(
    conn: Connection,
    registered: Chain,
    champions: Champions,
    wallets: Sequence[bytes],
    as_of: datetime,
    archive: Settings | None = None,
) -> list[Prediction]:
    """What the model of wallets says of these, as of a moment of the chain's time; no anomaly's. `archive` as in
    `predict`."""
    return _wallets_at(conn, registered, champions, [(wallet, as_of) for wallet in wallets], archive)


def _read(read: Callable[[Settings | None], History], archive: Settings | None) -> tuple[History, str]:
    """The history, without those who have archived rows if these cannot be read; and why not."""
    try:
        return read(archive), ARCHIVED
    except DashError as error:
        if archive is None:
            raise
        return read(None), str(error)


def _unread(
    models: Iterable[str], chain: str, asked: Iterable[Moment], unread: Container[bytes], reason: str
) -> Iterator[Prediction]:
    for model in models:
        for subject, as_of in asked:
            if subject in unread:
                yield Prediction(b"", model, subject, MODELS[model].subject, chain, as_of, reason=reason)


# ------------------------------------------------------------------------------------------- many moments at a time


def _pools_at(
    conn: Connection, registered: Chain, champions: Champions, asked: Sequence[Moment], archive: Settings | None
) -> list[Prediction]:
    """As `score_pools`, each pool as of its moment: read once up to the last of them, then cut off at each pool's own;
    where what was read need not hold all that was known at the moment, read as of it."""
    times = {as_of for _, as_of in asked}
    if len(times) < 2:
        return [
            prediction
            for as_of in times
            for prediction in score_pools(conn, registered, champions, [pool for pool, _ in asked], as_of, archive)
        ]
    last, every = max(times), [pool for pool, _ in asked]
    history, problem = _read(
        lambda some: pool_history(conn, registered.name, every, last, registered.quotes, some), archive
    )
    said = list(_unread(POOL_MODELS, registered.name, asked, history.unread, problem))
    asked = [one for one in asked if one[0] not in history.unread]
    pools = history.pools["pool"].to_list()
    base = dict(zip(pools, history.pools["base"], strict=True))
    creator = dict(zip(pools, token_creators(history), strict=True))
    busy = busy_wallets(conn, registered.name, creator.values(), last) | history.busy
    long = {pool for pool, cut in zip(pools, history.pools["cut"], strict=True) if cut or creator[pool] in busy}
    alone = {one for one in asked if one[0] in long} | made_later(conn, registered.name, asked, last)
    parts = []
    for some in _apart([one for one in asked if one not in alone], lambda pool: {pool, base[pool], creator[pool]}):
        known = history.of(some)
        part = PoolHistory(
            known.pools,
            _until(known.events, "pool", some),
            _until(known.transfers, "token", {base[pool]: as_of for pool, as_of in some.items()}),
            _until(known.creations, "wallet", {creator[pool]: as_of for pool, as_of in some.items()}),
        )
        # Who was behind a token then may be another one, and what he made was not read.
        then = dict(zip(part.pools["pool"], token_creators(part), strict=True))
        alone |= {one for one in some.items() if then[one[0]] != creator[one[0]]}
        parts.append(_pool_rows(part, some))
    said += [one for one in _said_of_pools(champions, registered, parts) if (one.subject, one.as_of) not in alone]
    for as_of in sorted({as_of for _, as_of in alone}):
        then_alone = sorted(pool for pool, at in alone if at == as_of)
        said += score_pools(conn, registered, champions, then_alone, as_of, archive)
    return said


def _wallets_at(
    conn: Connection, registered: Chain, champions: Champions, asked: Sequence[Moment], archive: Settings | None
) -> list[Prediction]:
    """As `score_wallets`, each wallet as of its moment; the oldest rows count, so later ones take nothing away."""
    if not asked:
        return []
    wallets = list(dict.fromkeys(wallet for wallet, _ in asked))
    last = max(as_of for _, as_of in asked)
    history, problem = _read(lambda some: wallet_history(conn, registered.name, wallets, last, some), archive)
    said = list(_unread([WALLET_MODEL], registered.name, asked, history.unread, problem))
    asked = [one for one in asked if one[0] not in history.unread]
    parts = []
    for some in _apart(asked, lambda wallet: {wallet}):
        transactions, transfers = (_until(frame, "wallet", some) for frame in (history.transactions, history.transfers))
        rows = wallet_raw(WalletHistory(transactions, transfers), list(some))
        parts.append(_at(rows.rename({"wallet": "subject"}), some))
    if parts:
        said += _predictions(champions, WALLET_MODEL, registered.name, pl.concat(parts))
    return said


def _apart(asked: Sequence[Moment], shared: Callable[[bytes], set[bytes | None]]) -> list[dict[bytes, datetime]]:
    """The subjects with their moments, parted so that in a part everything that is `shared` has one moment."""
    parts: list[tuple[dict[bytes, datetime], dict[bytes | None, datetime]]] = []
    for subject, as_of in asked:
        needs = shared(subject) - {None}
        fits = (part for part in parts if all(part[1].get(key, as_of) == as_of for key in needs))
        some, held = found if (found := next(fits, None)) else ({}, {})
        if not some:
            parts.append((some, held))
        some[subject] = as_of
        held.update(dict.fromkeys(needs, as_of))
    return [some for some, _ in parts]


def _until(frame: pl.DataFrame, key: str, moments: Mapping[bytes, datetime]) -> pl.DataFrame:
    """The rows up to and with the moment of their `key`, none without one."""
    known = pl.DataFrame(list(moments.items()), {key: pl.Binary, "_until": frame.schema["ts"]}, orient="row")
    return frame.join(known, on=key).filter(pl.col("ts") <= pl.col("_until")).drop("_until")


# ---------------------------------------------------------------------------------------------- rows, and what is said


def _pool_rows(history: PoolHistory, moments: Mapping[bytes, datetime]) -> dict[str, pl.DataFrame]:
    """Each model's rows of the pools; the history ends with their moments."""
    asked = pl.DataFrame(list(moments.items()), MOMENTS, orient="row")
    risk = _at(pool_raw(history).rename({"pool": "subject"}), moments)
    return {"pool_risk": risk, "liquidity_outlook": outlook_raw(history, asked).rename({"pool": "subject"})}


def _at(raw: pl.DataFrame, moments: Mapping[bytes, datetime]) -> pl.DataFrame:
    return raw.with_columns(as_of=pl.Series([moments[subject] for subject in raw["subject"]], dtype=MOMENTS["as_of"]))


def _said_of_pools(
    champions: Champions, registered: Chain, parts: Sequence[Mapping[str, pl.DataFrame]]
) -> list[Prediction]:
    return [
        prediction
        for model in POOL_MODELS
        if parts
        for prediction in _predictions(champions, model, registered.name, pl.concat(part[model] for part in parts))
    ]


def _predictions(champions: Champions, model: str, chain: str, raw: pl.DataFrame) -> Iterable[Prediction]:
    """`raw`: subject, as_of, the model's raw columns, and the reason why a row cannot be scored (null where it can)."""
    spec, scorer = MODELS[model], champions.get(model)
    columns = {name: raw[name].to_numpy() for name in spec.columns}
    reasons = [
        unknown or (None if scorer else champions.problem(model) or "no champion yet") for unknown in raw["reason"]
    ]
    scorable = [i for i, reason in enumerate(reasons) if scorer and (reason is None or reason in _SCORED_ANYWAY)]
    known = {name: values[scorable] for name, values in columns.items()}
    scores = dict(zip(scorable, scorer.score(known), strict=True)) if scorer and scorable else {}
    parts = dict(zip(scorable, scorer.explain(known), strict=True)) if scorer and scorable else {}
    for i, (subject, as_of) in enumerate(zip(raw["subject"], raw["as_of"], strict=True)):
        yield Prediction(
            b"",
            model,
            subject,
            spec.subject,
            chain,
            as_of,
            scorer.version if scorer else NO_MODEL,
            float(scores[i]) if i in scores else None,
            reasons[i],
            {name: _json(values[i]) for name, values in columns.items()},
            dict(parts.get(i, ())),
        )


def _json(value: float) -> float | None:
    """JSON knows neither NaN nor infinities."""
    return float(value) if math.isfinite(value) else None
