"""Telling operators: once while a condition lasts, again after the repeat interval, and when it is over.

Belongs here: when a notice is queued, delivering what is queued. Does not belong here: SQL
(`dash_pipeline/storage/notices.py`), requests (`send.py`).

A notice is in the database before anything is sent, so a kill loses none: at least once, with an id that is the same
for each try. Each channel has a queue and a thread: one that is down holds up no other.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from dash_pipeline.alerts.deliver import LEASE_S, Answer, pause_after
from dash_pipeline.notify.notice import Notice, channels_of
from dash_pipeline.notify.send import send
from dash_pipeline.settings import Settings
from dash_pipeline.storage import notices as store
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.notices import Open

log = logging.getLogger(__name__)

_RANKS = ("low", "medium", "high")
# Of a call: a sensor's tick has a minute.
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Sent:
    """What became of messages: taken; to be tried again; refused for good or given up."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0


def event_of(before: Open | None, severity: str, now: datetime, repeat_s: float) -> str | None:
    """What is told of a condition that was found: `raised` when it is new, came back or got worse, `repeated` once so
    many seconds are over since it was told, None for nothing."""
    if before is None or before.resolved_at is not None or _RANKS.index(severity) > _RANKS.index(before.severity):
        return "raised"
    return "repeated" if now - before.told_at >= timedelta(seconds=repeat_s) else None


def tell(conn: db.Connection, settings: Settings, notice: Notice) -> str | None:
    """Queue a notice for its owner's channels if it is time to; what was queued: `raised`, `repeated`, or None."""
    said = notice.document("raised")
    with conn.transaction():
        before, now = store.hold(conn, notice.key, said)
        event = event_of(before, notice.severity, now, settings.notify_repeat_s)
        if before is not None:
            store.seen(conn, notice.key, said, anew=before.resolved_at is not None, told=event is not None)
        if event:
            store.queue(conn, notice.key, channels_of(notice.owner, settings.owner_routes), said | {"event": event})
    return event


def resolve(conn: db.Connection, settings: Settings, key: str, text: str = "") -> bool:
    """Close a notice, and tell those who were told of it; False if it was not open. `text`: why it is over."""
    with conn.transaction():
        found = store.resolve(conn, key)
        if found is None:
            return False
        said, channels = found
        if settings.notify_resolved:
            store.queue(conn, key, channels, said | {"event": "resolved", "text": text or said["text"]})
    return True


def deliver(settings: Settings) -> Sent:
    """Send what is due, the channels side by side; returns after some 20 s at the latest, or when nothing is due.

    Any number of processes may do this at the same time. Raises Unavailable when the database is away.
    """
    with db.session(settings) as conn:
        dropped = store.give_up(conn, settings.alert_give_up_s)
        channels = [name for name in store.waiting(conn) if name in settings.notify_channels]
    if not channels:
        return Sent(dropped=dropped)
    with ThreadPoolExecutor(len(channels), thread_name_prefix="notify") as pool:
        parts = list(pool.map(lambda name: _empty(settings, name), channels))
    return Sent(
        sum(part.delivered for part in parts),
        sum(part.failed for part in parts),
        sum(part.dropped for part in parts) + dropped,
    )


def send_at_once(settings: Settings, notice: Notice) -> list[str]:
    """Send a notice past the database, which is away, once: nothing is remembered, repeated or held back. Returns what
    went wrong, a line for each channel that did not take it."""
    names = channels_of(notice.owner, settings.owner_routes)
    id_, said = secrets.token_hex(16), notice.document("raised")

    def one(name: str) -> Answer:
        return send(settings.notify_channels[name], said, id_, settings.alert_secret)

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        answers = dict(zip(names, pool.map(one, names), strict=True))
    return [f"{name}: {answer.error}" for name, answer in answers.items() if answer.error]


def _empty(settings: Settings, name: str) -> Sent:
    """Send what waits for one channel until it fails, or time is up."""
    delivered = dropped = 0
    deadline = time.monotonic() + _PATIENCE_S
    with db.session(settings) as conn:
        while time.monotonic() < deadline and (one := store.due(conn, name, LEASE_S)):
            id_ = hashlib.sha256(f"{one.id} {one.queued_at.isoformat()}".encode()).hexdigest()[:32]
            answer = send(settings.notify_channels[name], one.message, id_, settings.alert_secret)
            if not answer.error:
                store.delivered(conn, one)
                delivered += 1
            elif answer.refused:
                log.error("%s refuses the notice %s: %s", name, one.message["key"], answer.error)
                store.drop(conn, one, f"refused: {answer.error}")
                dropped += 1
            else:
                log.warning("%s did not take the notice %s: %s", name, one.message["key"], answer.error)
                store.put_off(conn, one, answer.error, pause_after(one.attempts, answer))
                return Sent(delivered, 1, dropped)
    return Sent(delivered, 0, dropped)
