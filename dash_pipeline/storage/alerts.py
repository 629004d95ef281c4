"""Alerts and their deliveries in the database.

Belongs here: SQL on intel.alerts and intel.deliveries. Does not belong here: which anomalies are worth an alert
(`dash_pipeline/alerts/rules.py`), HTTP (`dash_pipeline/alerts/deliver.py`).

A delivery is one event (raised, retracted) of one alert for one route. It waits for its time, is claimed by moving that
time ahead, and ends as delivered or dropped; what is claimed and never settled, because the process died, comes due
again. Rows that were claimed together and have had no answer keep a common `next_try_at`, by which they find together
again: the same request is made once more, with the same key. `next_try_at` is also the order of the queue.

Locks are taken in one order, so that nobody waits in a circle: the chain's alerts, alerts by id, deliveries by key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from dash_pipeline.alerts.rules import CANDIDATES, RAISED, SEVERITIES, Policy, decide
from dash_pipeline.storage.anomalies import Stored
from dash_pipeline.storage.predictions import PREDICTION, as_hex, utc
from dash_pipeline.storage.timescale import Connection

Document = dict[str, Any]

RETRACTED_UNSENT = "retracted before it was sent"
BACK_UNSENT = "the alert was back before this was sent"
# A request that may or may not have arrived: its alerts count as told. The first is a request's that is under way.
IN_FLIGHT = "no answer yet"
UNANSWERED = "no answer"
_TOLD = f"({{0}}.delivered_at IS NOT NULL OR {{0}}.error LIKE '{UNANSWERED}%%')"
#: SQL that is true of a delivery that nobody has given up and that has not arrived.
WAITS = "{0}.delivered_at IS NULL AND {0}.dropped IS NULL"
_SECOND = "interval '1 second'"
#: True of an alert that is not yet as its anomaly is, or that somebody is to be told of.
UNSETTLED = (
    "(({alert}.retracted_at IS NULL) <> ({anomaly}.retracted_at IS NULL) OR {anomaly}.retracted_at IS NULL AND"
    " ({alert}.token, {alert}.wallets, {alert}.evidence) IS DISTINCT FROM"
    "  ({anomaly}.token, {anomaly}.wallets, {anomaly}.evidence)"
    f" OR EXISTS (SELECT FROM intel.deliveries d WHERE d.alert_id = {{alert}}.id AND {WAITS.format('d')}))"
)


# ---------------------------------------------------------------------------------------------- raising, taking back


def raise_alerts(
    conn: Connection, policy: Policy, anomalies: Iterable[Stored], run_id: str | None = None
) -> list[bytes]:
    """Make alerts of these anomalies, as far as the policy says so, in the caller's transaction; the ids of alerts that
    are new, or back because their anomaly is.

    Anomalies are read again under the lock that is held until the transaction ends: of two processes with the same
    anomalies one raises, and one that was retracted meanwhile raises nothing. Alerts that exist get their anomaly's
    newest evidence, and are indexed again if this transaction wrote predictions for them.
    """
    ids = [one.id for one in anomalies]
    raised: list[bytes] = []
    for chain in _hold_chains(conn, ids):
        raised += _bring_back(conn, ids, chain)
        _refresh(conn, ids, chain)
        candidates = conn.execute(
            "SELECT id, pool, severity, ts, detected_at FROM intel.anomalies n WHERE id = ANY(%s) AND chain = %s"
            " AND retracted_at IS NULL AND NOT EXISTS (SELECT FROM intel.alerts a WHERE a.id = n.id)",
            (ids, chain),
            prepare=True,
        ).fetchall()
        raised += _raise(conn, policy, chain, candidates, run_id)
    return raised


def retract(conn: Connection, policy: Policy, anomalies: Iterable[bytes], run_id: str | None = None) -> list[bytes]:
    """Take back the alerts of these anomalies, which are retracted, in the caller's transaction; the ids of alerts that
    were raised instead: anomalies of their pools that they covered until now."""
    ids = list(anomalies)
    raised: list[bytes] = []
    for chain in _hold_chains(conn, ids):
        gone = _hold(
            conn,
            "SELECT a.id FROM intel.alerts a JOIN intel.anomalies n USING (id) WHERE a.id = ANY(%s) AND a.chain = %s"
            " AND a.retracted_at IS NULL AND n.retracted_at IS NOT NULL",
            (ids, chain),
        )
        if not gone:
            continue
        conn.execute(
            "UPDATE intel.alerts SET retracted_at = clock_timestamp(), revision = revision + 1 WHERE id = ANY(%s)",
            (gone,),
        )
        _tell(conn, gone, "retracted", "raised", RETRACTED_UNSENT)
        uncovered = conn.execute(
            "SELECT DISTINCT n.id, n.pool, n.severity, n.ts, n.detected_at FROM intel.alerts a"
            " JOIN intel.anomalies n ON n.chain = a.chain AND n.pool = a.pool"
            " WHERE a.id = ANY(%s) AND n.retracted_at IS NULL"
            f" AND n.detected_at > a.raised_at - %s * {_SECOND}"
            " AND NOT EXISTS (SELECT FROM intel.alerts b WHERE b.id = n.id)",
            (gone, policy.cooldown_s),
        ).fetchall()
        raised += _raise(conn, policy, chain, uncovered, run_id)
    return raised


def _hold_chains(conn: Connection, ids: Sequence[bytes]) -> list[str]:
    """The anomalies' chains, whose alerts are held for this transaction."""
    found = conn.execute(
        "SELECT DISTINCT chain FROM intel.anomalies WHERE id = ANY(%s) ORDER BY chain", (ids,), prepare=True
    ).fetchall()
    chains = [chain for (chain,) in found]
    for chain in chains:
        hold(conn, chain)
    return chains


def _hold(conn: Connection, query: str, params: Sequence[Any]) -> list[bytes]:
    """The ids of the alerts (`a`) that the query finds; they and their deliveries are locked for this transaction."""
    rows = conn.execute(f"{query} ORDER BY a.id FOR NO KEY UPDATE OF a", params, prepare=True).fetchall()
    ids = [id_ for (id_,) in rows]
    if ids:
        conn.execute(
            "SELECT FROM intel.deliveries WHERE alert_id = ANY(%s) ORDER BY alert_id, route, event FOR UPDATE", (ids,)
        )
    return ids


def _raise(
    conn: Connection, policy: Policy, chain: str, candidates: Sequence[tuple[Any, ...]], run_id: str | None
) -> list[bytes]:
    if not candidates:
        return []
    frame = pl.DataFrame(candidates, CANDIDATES, orient="row")
    # An alert whose anomaly is taken back covers nothing, even if that is yet to be done to itself.
    holding = conn.execute(
        "SELECT a.pool, a.severity, a.raised_at FROM intel.alerts a LEFT JOIN intel.anomalies n USING (id)"
        " WHERE a.chain = %s AND a.pool = ANY(%s) AND a.retracted_at IS NULL AND n.retracted_at IS NULL"
        f" AND a.raised_at > %s - %s * {_SECOND}",
        (chain, frame["pool"].unique().to_list(), frame["detected_at"].min(), policy.cooldown_s),
        prepare=True,
    ).fetchall()
    ids = decide(frame, pl.DataFrame(holding, RAISED, orient="row"), policy)
    if not ids:
        return []
    told = policy.told()
    conn.execute(
        "WITH raised AS (INSERT INTO intel.alerts"
        "  (id, chain, pool, token, kind, severity, ts, block_number, tx_hash, wallets, evidence, run_id)"
        "  SELECT id, chain, pool, token, kind, severity, ts, block_number, tx_hash, wallets, evidence, %s"
        "  FROM intel.anomalies WHERE id = ANY(%s) ON CONFLICT DO NOTHING RETURNING id, severity)"
        " INSERT INTO intel.deliveries (alert_id, route, event, next_try_at)"
        # One time for all that are raised together, because what waits longest goes first; in a flood the most severe.
        " SELECT a.id, r.route, 'raised', statement_timestamp()"
        "  - array_position(%s::text[], a.severity) * interval '1 millisecond'"
        " FROM raised a JOIN unnest(%s::text[], %s::text[]) AS r(route, severity) USING (severity)"
        " ON CONFLICT DO NOTHING",
        (run_id, ids, list(SEVERITIES), [route for route, _ in told], [severity for _, severity in told]),
        prepare=True,
    )
    return ids


def _bring_back(conn: Connection, ids: Sequence[bytes], chain: str) -> list[bytes]:
    """Alerts that were taken back, and whose anomalies are on the chain again."""
    back = _hold(
        conn,
        "SELECT a.id FROM intel.alerts a JOIN intel.anomalies n USING (id) WHERE a.id = ANY(%s) AND a.chain = %s"
        " AND a.retracted_at IS NOT NULL AND n.retracted_at IS NULL",
        (ids, chain),
    )
    if back:
        conn.execute("UPDATE intel.alerts SET retracted_at = NULL, revision = revision + 1 WHERE id = ANY(%s)", (back,))
        _tell(conn, back, "raised", "retracted", BACK_UNSENT)
    return back


def _refresh(conn: Connection, ids: Sequence[bytes], chain: str) -> None:
    """Alerts have the evidence of their anomalies, and are indexed again when this transaction predicted for them."""
    stale = _hold(
        conn,
        "SELECT a.id FROM intel.alerts a JOIN intel.anomalies n USING (id) WHERE a.id = ANY(%s) AND a.chain = %s"
        " AND ((a.token, a.wallets, a.evidence) IS DISTINCT FROM (n.token, n.wallets, n.evidence) OR EXISTS"
        "  (SELECT FROM intel.predictions p WHERE p.anomaly_id = a.id AND p.predicted_at >= transaction_timestamp()))",
        (ids, chain),
    )
    if stale:
        conn.execute(
            "UPDATE intel.alerts a SET token = n.token, wallets = n.wallets, evidence = n.evidence,"
            " revision = a.revision + 1 FROM intel.anomalies n WHERE n.id = a.id AND a.id = ANY(%s)",
            (stale,),
        )


def _tell(conn: Connection, ids: Sequence[bytes], event: str, other: str, unsent: str) -> None:
    """These alerts are now `event` and no longer `other`: what waits to say `other` is dropped as `unsent`; who may
    have been told `other`, or was not told that the alert is raised because it was taken back, is told `event`."""
    conn.execute(
        "INSERT INTO intel.deliveries (alert_id, route, event, next_try_at)"
        " SELECT DISTINCT alert_id, route, %(event)s, statement_timestamp() FROM intel.deliveries d"
        " WHERE alert_id = ANY(%(ids)s)"
        f" AND (event = %(other)s AND {_TOLD.format('d')} OR event = %(event)s AND dropped = %(taken_back)s)"
        f" {_ANEW}",
        {"ids": list(ids), "event": event, "other": other, "taken_back": RETRACTED_UNSENT},
    )
    conn.execute(
        f"UPDATE intel.deliveries d SET dropped = %s WHERE alert_id = ANY(%s) AND event = %s AND {WAITS.format('d')}",
        (unsent, list(ids), other),
    )


# ---------------------------------------------------------------------------------------------- deliveries


@dataclass(frozen=True)
class Due:
    """A claimed delivery. `generation`: which telling of this event this is; the same when it is tried again.
    `unanswered`: an earlier try may have arrived."""

    alert_id: bytes
    route: str
    event: str
    attempts: int
    generation: str
    unanswered: bool


def waiting(conn: Connection, routes: Collection[str] | None = None) -> tuple[int, int]:
    """Deliveries that are due now (on these routes, or on all) and alerts that the index does not show as they are."""
    row = conn.execute(
        f"SELECT (SELECT count(*) FROM intel.deliveries d WHERE {WAITS.format('d')}"
        "  AND next_try_at <= statement_timestamp() AND (%(routes)s::text[] IS NULL OR route = ANY(%(routes)s))),"
        " (SELECT count(*) FROM intel.alerts WHERE indexed_revision < revision)",
        {"routes": None if routes is None else list(routes)},
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def next_due(conn: Connection, routes: Collection[str]) -> float | None:
    """Seconds until the next delivery on these routes is due, 0 if one is; None if none waits."""
    row = conn.execute(
        "SELECT extract(epoch FROM min(next_try_at) - statement_timestamp())::float8"
        f" FROM intel.deliveries d WHERE {WAITS.format('d')} AND route = ANY(%s)",
        (list(routes),),
        prepare=True,
    ).fetchone()
    return None if row is None or row[0] is None else max(0.0, row[0])


def due(conn: Connection, limit: int, routes: Collection[str], lease_s: float) -> list[Due]:
    """Claim what makes the next request: deliveries of one route, at most `limit`; none if nothing is due.

    They come due again after `lease_s` seconds unless they are settled. What a request without an answer held makes the
    same request again; everything else goes in the order of the queue. What contradicts an event whose request is under
    way waits for its end.
    """
    with conn.transaction():
        # Two claims at a time would part what belongs together.
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('deliveries', 0))", prepare=True)
        rows = conn.execute(
            f"WITH first AS (SELECT d.route, d.next_try_at, {_NO_ANSWER} AS unanswered FROM intel.deliveries d"
            f"  WHERE {_DUE} ORDER BY d.next_try_at, d.route, d.alert_id LIMIT 1),"
            " batch AS (SELECT d.alert_id, d.route, d.event, f.unanswered FROM intel.deliveries d CROSS JOIN first f"
            f"  WHERE {_DUE} AND d.route = f.route AND {_NO_ANSWER} = f.unanswered"
            "  AND (NOT f.unanswered OR d.next_try_at = f.next_try_at) ORDER BY d.next_try_at, d.alert_id, d.event"
            "  LIMIT (SELECT CASE WHEN unanswered THEN NULL ELSE %(limit)s::int END FROM first)"
            "  FOR UPDATE OF d SKIP LOCKED)"
            " UPDATE intel.deliveries d SET attempts = d.attempts + 1, error = %(in_flight)s,"
            f"  next_try_at = statement_timestamp() + %(lease)s * {_SECOND} FROM batch b"
            "  WHERE d.alert_id = b.alert_id AND d.route = b.route AND d.event = b.event"
            " RETURNING d.alert_id, d.route, d.event, d.attempts, coalesce((SELECT extract(epoch FROM o.delivered_at)"
            "  FROM intel.deliveries o WHERE o.alert_id = d.alert_id AND o.route = d.route AND o.event <> d.event),"
            "  0)::text, b.unanswered",
            {
                "unanswered": f"{UNANSWERED}%", "in_flight": IN_FLIGHT, "routes": list(routes), "limit": limit,
                "lease": lease_s,
            },
            prepare=True,
        ).fetchall()  # fmt: skip
    return [Due(*row) for row in rows]


def renew(conn: Connection, batch: Sequence[Due], lease_s: float) -> None:
    """Keep claimed deliveries a while longer: their request is split, and there are more answers to wait for."""
    with conn.transaction():
        _hold_batch(conn, batch)
        conn.execute(
            f"UPDATE intel.deliveries d SET next_try_at = statement_timestamp() + %s * {_SECOND} {_IN_BATCH}"
            f" AND {WAITS.format('d')}",
            (lease_s, *_keys(batch)),
        )


def delivered(conn: Connection, batch: Sequence[Due]) -> None:
    """These arrived. Who was told what no longer holds, because it changed meanwhile, is told what does."""
    with conn.transaction():
        _hold_batch(conn, batch)
        conn.execute(
            f"UPDATE intel.deliveries d SET delivered_at = clock_timestamp(), error = NULL, dropped = NULL {_IN_BATCH}",
            _keys(batch),
        )
        conn.execute(
            "INSERT INTO intel.deliveries (alert_id, route, event, next_try_at) SELECT a.id, k.route,"
            " CASE k.event WHEN 'raised' THEN 'retracted' ELSE 'raised' END, statement_timestamp()"
            " FROM intel.alerts a JOIN unnest(%s::bytea[], %s::text[], %s::text[]) AS k(id, route, event) USING (id)"
            f" WHERE (a.retracted_at IS NULL) <> (k.event = 'raised') {_ANEW}",
            _keys(batch),
        )


def drop(conn: Connection, batch: Sequence[Due], reason: str) -> None:
    """These are not tried again."""
    with conn.transaction():
        _hold_batch(conn, batch)
        conn.execute(
            f"UPDATE intel.deliveries d SET dropped = %s, error = %s {_IN_BATCH} AND delivered_at IS NULL",
            (reason, reason, *_keys(batch)),
        )


def put_off(conn: Connection, batch: Sequence[Due], error: str, attempts: int, pause_s: float) -> None:
    """The route of these did not take them: it rests, and all that waits for it with it.

    So a route that is away is asked once in a pause, whatever waits. What has just failed goes to the end of the queue:
    if it is its fault, it holds up nothing else. Requests without an answer stay together, in their order.
    """
    pause = f"%s * {_SECOND}"
    with conn.transaction():
        _hold_batch(conn, batch)
        conn.execute(
            "UPDATE intel.deliveries d SET error = %s, attempts = greatest(d.attempts, %s),"
            f" next_try_at = statement_timestamp() + {pause} + interval '1 millisecond'"
            f" {_IN_BATCH} AND delivered_at IS NULL",
            (error, attempts, pause_s, *_keys(batch)),
        )
    conn.execute(
        "WITH others AS (SELECT alert_id, route, event, next_try_at FROM intel.deliveries d"
        f"  WHERE {WAITS.format('d')} AND route = %s AND error IS DISTINCT FROM %s"
        f"  AND next_try_at < statement_timestamp() + {pause} FOR UPDATE SKIP LOCKED),"
        " ranked AS (SELECT *, least(900, dense_rank() OVER (ORDER BY next_try_at)) AS place FROM others)"
        " UPDATE intel.deliveries d SET attempts = greatest(d.attempts, %s),"
        f"  next_try_at = statement_timestamp() + {pause} + r.place * interval '1 microsecond'"
        " FROM ranked r WHERE d.alert_id = r.alert_id AND d.route = r.route AND d.event = r.event",
        (batch[0].route, IN_FLIGHT, pause_s, attempts, pause_s),
    )


def tries_on(conn: Connection, batch: Sequence[Due]) -> int:
    """How often the route of this batch has failed in a row: what waits for it counts its failures, its own or not."""
    row = conn.execute(
        f"SELECT coalesce(max(attempts), 0) + 1 FROM intel.deliveries d WHERE {WAITS.format('d')} AND route = %s"
        " AND error IS DISTINCT FROM %s",
        (batch[0].route, IN_FLIGHT),
    ).fetchone()
    assert row is not None
    tries: int = max(row[0], *(one.attempts for one in batch))
    return tries


def give_up(conn: Connection, routes: Collection[str], after_s: float) -> int:
    """Drop what has waited longer than `after_s` seconds since it became so, and was tried at least once or is for a
    route that is no longer there; how many."""
    return conn.execute(
        "WITH old AS (SELECT d.alert_id, d.route, d.event FROM intel.deliveries d"
        "  JOIN intel.alerts a ON a.id = d.alert_id LEFT JOIN intel.deliveries o"
        "   ON o.alert_id = d.alert_id AND o.route = d.route AND o.event <> d.event"
        f"  WHERE {WAITS.format('d')} AND d.next_try_at <= statement_timestamp()"
        "  AND (d.attempts > 0 OR d.route <> ALL(%s)) AND greatest(a.raised_at, a.retracted_at, o.delivered_at)"
        f"   < statement_timestamp() - %s * {_SECOND} FOR UPDATE OF d SKIP LOCKED)"
        " UPDATE intel.deliveries d SET dropped = CASE WHEN attempts = 0 THEN 'there is no such route any more'"
        "  ELSE 'given up: ' || coalesce(error, 'the route did not answer') END"
        " FROM old WHERE d.alert_id = old.alert_id AND d.route = old.route AND d.event = old.event",
        (list(routes), after_s),
        prepare=True,
    ).rowcount


_IN_BATCH = (
    "FROM unnest(%s::bytea[], %s::text[], %s::text[]) AS k(alert_id, route, event)"
    " WHERE d.alert_id = k.alert_id AND d.route = k.route AND d.event = k.event"
)
_NO_ANSWER = "coalesce(d.error LIKE %(unanswered)s, false)"
_DUE = (
    f"{WAITS.format('d')} AND d.next_try_at <= statement_timestamp() AND d.route = ANY(%(routes)s)"
    " AND NOT EXISTS (SELECT FROM intel.deliveries o WHERE o.alert_id = d.alert_id AND o.route = d.route"
    "  AND o.event <> d.event AND o.error = %(in_flight)s AND o.next_try_at > statement_timestamp())"
)
_ANEW = (
    "ON CONFLICT (alert_id, route, event) DO UPDATE SET attempts = 0, next_try_at = excluded.next_try_at,"
    " delivered_at = NULL, error = NULL, dropped = NULL"
)


def _keys(batch: Sequence[Due]) -> tuple[list[bytes], list[str], list[str]]:
    return [one.alert_id for one in batch], [one.route for one in batch], [one.event for one in batch]


def _hold_batch(conn: Connection, batch: Sequence[Due]) -> None:
    _hold(conn, "SELECT a.id FROM intel.alerts a WHERE a.id = ANY(%s)", ([one.alert_id for one in batch],))


# ---------------------------------------------------------------------------------------------- reading


_PREDICTIONS = f"""(SELECT coalesce(jsonb_agg({PREDICTION} ORDER BY p.model, p.score DESC NULLS LAST, p.subject), '[]')
 FROM intel.predictions p WHERE p.anomaly_id = a.id)"""

_DELIVERIES = f"""(SELECT coalesce(jsonb_agg(jsonb_build_object(
 'route', d.route, 'event', d.event, 'attempts', d.attempts, 'delivered_at', {utc("d.delivered_at")},
 'next_try_at', CASE WHEN {WAITS.format("d")} THEN {utc("d.next_try_at")} END, 'error', d.error,
 'dropped', d.dropped) ORDER BY d.route, d.event), '[]') FROM intel.deliveries d WHERE d.alert_id = a.id)"""

_READ = f"""a.id, jsonb_build_object(
 'id', encode(a.id, 'hex'), 'chain', a.chain, 'pool', {as_hex("a.pool")}, 'token', {as_hex("a.token")},
 'kind', a.kind, 'severity', a.severity, 'ts', {utc("a.ts")}, 'block_number', a.block_number,
 'tx_hash', {as_hex("a.tx_hash")},
 'wallets', (SELECT coalesce(jsonb_agg({as_hex("w.wallet")} ORDER BY w.place), '[]')
  FROM unnest(a.wallets) WITH ORDINALITY AS w(wallet, place)),
 'evidence', a.evidence, 'predictions', coalesce(a.predictions, {_PREDICTIONS}),
 'raised_at', {utc("a.raised_at")},
 'retracted', a.retracted_at IS NOT NULL, 'retracted_at', {utc("a.retracted_at")}, 'revision', a.revision,
 'run_id', a.run_id)"""


def read(conn: Connection, ids: Collection[bytes]) -> dict[bytes, Document]:
    """These alerts as people and programs get them, by id: bytes as hex, times as ISO 8601 in UTC, `predictions` with
    the five largest contributions each."""
    return dict(
        conn.execute(f"SELECT {_READ} FROM intel.alerts a WHERE a.id = ANY(%s)", (list(ids),), prepare=True).fetchall()
    )


def newest(
    conn: Connection, severities: Collection[str], limit: int, chain: str | None = None, *, active_only: bool = False
) -> list[Document]:
    """The alerts of these severities that were raised last, newest first, each with its `deliveries`."""
    more = f" || jsonb_build_object('deliveries', {_DELIVERIES})"
    rows = conn.execute(*ask_newest(severities, limit, chain, active_only=active_only, more=more)).fetchall()
    return [document for *_, document in rows]


def ask_newest(
    severities: Collection[str],
    limit: int,
    chain: str | None = None,
    *,
    active_only: bool = False,
    pool: bytes | None = None,
    since: datetime | None = None,
    after: tuple[datetime, datetime, bytes] | None = None,
    more: str = "",
) -> tuple[str, dict[str, Any]]:
    """The query, and its parameters, for the alerts of these severities that were raised last, newest first: rows of
    (raised_at, ts, id, document). `since`: raised at this time or later; `after`: the first three columns of the row
    before the first, so that a list goes on where it ended whatever was raised meanwhile; `more`: SQL that is appended
    to the document."""
    query = (
        f"SELECT a.raised_at, a.ts, {_READ}{more} FROM intel.alerts a"
        " WHERE a.severity = ANY(%(severities)s) AND (%(chain)s::text IS NULL OR a.chain = %(chain)s)"
        " AND (a.retracted_at IS NULL OR NOT %(active_only)s)"
    )
    params: dict[str, Any] = {
        "severities": list(severities),
        "chain": chain,
        "active_only": active_only,
        "limit": limit,
    }
    # Only what is asked for is in the query: the planner then sees which index it is for.
    if pool is not None:
        query, params["pool"] = f"{query} AND a.pool = %(pool)s", pool
    if since is not None:
        query, params["since"] = f"{query} AND a.raised_at >= %(since)s", since
    if after is not None:
        query += (
            " AND a.raised_at <= %(raised)s AND (a.raised_at < %(raised)s OR a.ts < %(ts)s"
            " OR a.ts = %(ts)s AND a.id > %(id)s)"
        )
        params |= dict(zip(("raised", "ts", "id"), after, strict=True))
    return f"{query} ORDER BY a.raised_at DESC, a.ts DESC, a.id LIMIT %(limit)s", params


def ask_one(id_: bytes) -> tuple[str, dict[str, Any]]:
    """The query, and its parameters, for one alert: a row of (id, document), or none."""
    return f"SELECT {_READ} FROM intel.alerts a WHERE a.id = %(id)s", {"id": id_}


# ---------------------------------------------------------------------------------------------- the archive's part


def hold(conn: Connection, chain: str) -> None:
    """Nobody raises or takes back alerts of the chain until this transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('alerts:' || %s, 0))", (chain,), prepare=True)


def keep_predictions(conn: Connection, chain: str, lo: datetime, hi: datetime) -> None:
    """The chain's predictions as of this time leave the database: their alerts keep what is shown of them."""
    ids = _hold(
        conn,
        "SELECT a.id FROM intel.alerts a WHERE a.predictions IS NULL AND EXISTS (SELECT FROM intel.predictions p"
        "  WHERE p.anomaly_id = a.id AND p.chain = %s AND p.as_of >= %s AND p.as_of < %s)",
        (chain, lo, hi),
    )
    conn.execute(f"UPDATE intel.alerts a SET predictions = {_PREDICTIONS} WHERE a.id = ANY(%s)", (ids,))


# ---------------------------------------------------------------------------------------------- the index's state


def unindexed(conn: Connection, limit: int) -> dict[bytes, Document]:
    """Alerts that the index does not show as they are, by id; longest known first."""
    return dict(
        conn.execute(
            f"SELECT {_READ} FROM intel.alerts a WHERE a.indexed_revision < a.revision ORDER BY a.raised_at LIMIT %s",
            (limit,),
        ).fetchall()
    )


def indexed(conn: Connection, revisions: Iterable[tuple[bytes, int]]) -> None:
    """The index shows these alerts in these revisions, or in newer ones."""
    ids, numbers = zip(*revisions, strict=True)
    with conn.transaction():
        _hold(conn, "SELECT a.id FROM intel.alerts a WHERE a.id = ANY(%s)", (list(ids),))
        conn.execute(
            "UPDATE intel.alerts a SET indexed_revision = greatest(indexed_revision, n.revision)"
            " FROM unnest(%s::bytea[], %s::int4[]) AS n(id, revision) WHERE a.id = n.id",
            (list(ids), list(numbers)),
        )


def forget(conn: Connection, chain: str) -> int:
    """Delete a chain's alerts and deliveries, for local chains that begin anew under the same name; how many alerts."""
    with conn.transaction():
        hold(conn, chain)
        ids = _hold(conn, "SELECT a.id FROM intel.alerts a WHERE a.chain = %s", (chain,))
        conn.execute("DELETE FROM intel.deliveries WHERE alert_id = ANY(%s)", (ids,))
        return conn.execute("DELETE FROM intel.alerts WHERE id = ANY(%s)", (ids,)).rowcount
