"""Notices to operators and the queue of their deliveries: tables `ops.notices`, `ops.notice_deliveries`.

Belongs here: SQL. Does not belong here: what is sent, and how (`dash_pipeline/notify/`).

A channel's deliveries leave in the order in which they were queued, one at a time: nobody hears that something is over
before he has heard of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.types.json import Jsonb

from dash_pipeline.storage.timescale import Connection

_WAITS = "d.delivered_at IS NULL AND d.dropped IS NULL"


@dataclass(frozen=True)
class Open:
    """A notice as it is stored. `told_at`: when it was last queued; `resolved_at`: None while it is open."""

    severity: str
    told_at: datetime
    resolved_at: datetime | None


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a channel, claimed."""

    id: int
    channel: str
    event: str
    message: dict[str, Any]
    queued_at: datetime
    attempts: int


def hold(conn: Connection, key: str, message: dict[str, Any]) -> tuple[Open | None, datetime]:
    """Lock the notice of this key, or make it: what it was before (None if it is new), and the database's time. Inside
    a transaction."""
    made = conn.execute(
        "INSERT INTO ops.notices (key, severity, owner, title, body, links) VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (key) DO NOTHING RETURNING told_at",
        (key, message["severity"], message["owner"], message["title"], message["text"], Jsonb(message["links"])),
    ).fetchone()
    if made:
        return None, made[0]
    row = conn.execute(
        "SELECT severity, told_at, resolved_at, clock_timestamp() FROM ops.notices WHERE key = %s FOR UPDATE", (key,)
    ).fetchone()
    if row is None:  # swept in this very moment
        return hold(conn, key, message)
    return Open(*row[:3]), row[3]


def seen(conn: Connection, key: str, message: dict[str, Any], *, anew: bool, told: bool) -> None:
    """Write down that the notice holds. `anew`: it was resolved before; `told`: it is queued again."""
    conn.execute(
        "UPDATE ops.notices SET severity = %(severity)s, owner = %(owner)s, title = %(title)s, body = %(text)s,"
        " links = %(links)s, seen_at = clock_timestamp(), times = CASE WHEN %(anew)s THEN 1 ELSE times + 1 END,"
        " opened_at = CASE WHEN %(anew)s THEN clock_timestamp() ELSE opened_at END, resolved_at = NULL,"
        " told_at = CASE WHEN %(told)s THEN clock_timestamp() ELSE told_at END WHERE key = %(key)s",
        message | {"links": Jsonb(message["links"]), "anew": anew, "told": told, "key": key},
    )


def queue(conn: Connection, key: str, channels: Sequence[str], message: dict[str, Any]) -> None:
    """Put a message into the queues of channels."""
    conn.execute(
        "INSERT INTO ops.notice_deliveries (key, channel, event, message)"
        " SELECT %s, c, %s, %s FROM unnest(%s::text[]) c",
        (key, message["event"], Jsonb(message), list(channels)),
    )


def resolve(conn: Connection, key: str) -> tuple[dict[str, Any], list[str]] | None:
    """Close an open notice: what it said, and the channels that it was queued for since it was opened. None if it was
    not open. Inside a transaction."""
    row = conn.execute(
        "UPDATE ops.notices SET resolved_at = clock_timestamp() WHERE key = %s AND resolved_at IS NULL"
        " RETURNING severity, owner, title, body, links, opened_at",
        (key,),
    ).fetchone()
    if row is None:
        return None
    severity, owner, title, body, links, opened_at = row
    channels = conn.execute(
        "SELECT DISTINCT channel FROM ops.notice_deliveries WHERE key = %s AND queued_at >= %s AND dropped IS NULL",
        (key, opened_at),
    ).fetchall()
    said = {"key": key, "severity": severity, "title": title, "text": body, "owner": owner, "links": links}
    return said, sorted(channel for (channel,) in channels)


def open_titles(conn: Connection) -> dict[str, str]:
    """Key -> title of all open notices."""
    return dict(conn.execute("SELECT key, title FROM ops.notices WHERE resolved_at IS NULL ORDER BY key").fetchall())


def due(conn: Connection, channel: str, lease_s: float) -> Delivery | None:
    """Claim the oldest message that waits for the channel; None if there is none, or it is not due, or another's."""
    row = conn.execute(
        "WITH head AS (SELECT id FROM ops.notice_deliveries d"
        f"  WHERE channel = %s AND {_WAITS} ORDER BY id LIMIT 1 FOR UPDATE)"
        " UPDATE ops.notice_deliveries d SET next_try_at = clock_timestamp() + %s, attempts = attempts + 1 FROM head"
        f" WHERE d.id = head.id AND d.next_try_at <= clock_timestamp() AND {_WAITS}"
        " RETURNING d.id, d.channel, d.event, d.message, d.queued_at, d.attempts",
        (channel, timedelta(seconds=lease_s)),
    ).fetchone()
    return Delivery(*row) if row else None


def delivered(conn: Connection, one: Delivery) -> None:
    """The channel has taken it."""
    conn.execute(
        "UPDATE ops.notice_deliveries SET delivered_at = clock_timestamp(), error = NULL WHERE id = %s", (one.id,)
    )


def put_off(conn: Connection, one: Delivery, error: str, pause_s: float) -> None:
    """It is tried again after a pause."""
    conn.execute(
        "UPDATE ops.notice_deliveries SET error = %s, next_try_at = clock_timestamp() + %s WHERE id = %s",
        (error, timedelta(seconds=pause_s), one.id),
    )


def drop(conn: Connection, one: Delivery, reason: str) -> None:
    """It is not tried again."""
    conn.execute("UPDATE ops.notice_deliveries SET dropped = %s WHERE id = %s", (reason, one.id))


def give_up(conn: Connection, after_s: float) -> int:
    """Drop what waits longer than `after_s`, or for a channel that is no more, and is in nobody's hands; how many."""
    return conn.execute(
        f"UPDATE ops.notice_deliveries d SET dropped = 'given up: ' || coalesce(error, 'never tried') WHERE {_WAITS}"
        " AND queued_at < clock_timestamp() - %s AND (next_try_at <= clock_timestamp() OR error IS NOT NULL)",
        (timedelta(seconds=after_s),),
    ).rowcount


def waiting(conn: Connection) -> dict[str, int]:
    """Channel -> messages that wait for it."""
    return dict(
        conn.execute(f"SELECT channel, count(*) FROM ops.notice_deliveries d WHERE {_WAITS} GROUP BY 1").fetchall()
    )


def open_by_severity(conn: Connection) -> dict[str, int]:
    """Severity -> open notices."""
    return dict(
        conn.execute("SELECT severity, count(*) FROM ops.notices WHERE resolved_at IS NULL GROUP BY 1").fetchall()
    )
