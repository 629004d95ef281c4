"""Alerts to webhooks: signed, tried again, told once.

Belongs here: requests, what an answer means, when to try again; `verify` for who receives. Does not belong here: the
queue (`dash_pipeline/storage/alerts.py`), who is told what (`rules.py`).

A request is `{"type": "dash.alerts", "sent_at", "text", "alerts": [...]}`. Its header `X-Dash-Signature` is `sha256=`
and the hex HMAC-SHA-256, under the shared secret, of `X-Dash-Timestamp`, a dot and the body. `Idempotency-Key` follows
from what is told: a request whose answer was lost is made again with the same key. A receiver that has seen a key has
nothing to do. An alert's newest `event` holds; `revision` grows with every change, should requests overtake each other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import unquote, urlsplit

from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from dash_pipeline.alerts.rules import Policy
from dash_pipeline.storage import alerts as store
from dash_pipeline.storage.alerts import UNANSWERED, Due
from dash_pipeline.storage.timescale import Connection

Document = dict[str, Any]

TIMESTAMP, SIGNATURE, KEY = "X-Dash-Timestamp", "X-Dash-Signature", "Idempotency-Key"

# Between two bytes, and altogether: a receiver that sends a byte now and then must not hold up the others.
TIMEOUT_S, _ALTOGETHER_S = 5.0, 10.0
# Longer than a request takes, so that nobody else makes it meanwhile; how long a killed process holds it up.
LEASE_S = 60.0
_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_RETRY_AFTER_S = 1.0, 300.0, 3600.0
# What says nothing about the alerts: the receiver is busy, or is not (or not for us) where the route says.
_NOT_NOW = frozenset({401, 403, 404, 408, 410, 429})
# A receiver that refuses so many alerts one by one, and takes none, refuses all of them: that is the route's mistake.
_REFUSES_ALL = 8
_TEXT_LINES = 10
# What is due may be held by somebody else.
_LOOK_S = 0.05


# ---------------------------------------------------------------------------------------------- signatures


def sign(secret: SecretStr, timestamp: str, body: bytes) -> str:
    """The signature header's value."""
    mac = hmac.new(secret.get_secret_value().encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={mac.hexdigest()}"


def verify(secret: SecretStr, headers: Mapping[str, str], body: bytes, now: float, tolerance_s: float = 300) -> bool:
    """Whether a request is from who knows the secret, and from within `tolerance_s` seconds of `now` (Unix time). For
    receivers; names of headers in any case."""
    found = {name.lower(): value for name, value in headers.items()}
    timestamp, signature = found.get(TIMESTAMP.lower(), ""), found.get(SIGNATURE.lower(), "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    return abs(now - int(timestamp)) <= tolerance_s and hmac.compare_digest(
        sign(secret, timestamp, body).encode(), signature.encode()
    )


def idempotency_key(batch: Iterable[Due]) -> str:
    """The same for the same tellings of the same events, in any order."""
    lines = sorted(f"{one.alert_id.hex()} {one.event} {one.generation}" for one in batch)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


# ---------------------------------------------------------------------------------------------- messages


def message(tellings: Sequence[tuple[str, Document]], url: str, now: datetime) -> bytes:
    """The body of a request: `tellings` are events and their alerts, as `storage.alerts.read` has them."""
    alerts = [_entry(event, alert, url) for event, alert in tellings]
    lines = [alert["text"] for alert in alerts[:_TEXT_LINES]]
    if more := len(alerts) - len(lines):
        lines.append(f"and {more} more")
    return json.dumps(
        {
            "type": "dash.alerts",
            "sent_at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "text": "\n".join(lines),
            "alerts": alerts,
        },
        separators=(",", ":"),
    ).encode()


def _entry(event: str, alert: Document, url: str) -> Document:
    place = f"{url.rstrip('/')}/runs/{alert['run_id']}" if url and alert["run_id"] else url
    shown = {name: value for name, value in alert.items() if name not in ("retracted", "retracted_at", "run_id")}
    return {"event": event} | shown | {"text": describe(event, alert), "url": place}


def describe(event: str, alert: Document) -> str:
    """An alert in one line."""
    scores = ", ".join(
        f"{p['model']} {p['score']:.0%}"
        for p in alert["predictions"]
        if p["score"] is not None and p["subject_kind"] == "pool"
    )
    wallets = ", ".join(alert["wallets"][:2]) + (", ..." if len(alert["wallets"]) > 2 else "")
    return (
        f"{alert['severity'].upper() if event == 'raised' else 'TAKEN BACK'}: {alert['kind'].replace('_', ' ')} on"
        f" {alert['chain']}, pool {alert['pool']}, token {alert['token']}, block {alert['block_number']} at"
        f" {alert['ts'][:19]}Z" + (f"; {scores}" if scores else "") + (f"; wallets {wallets}" if wallets else "")
    )


# ---------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Answer:
    """What became of a request. `status`: None if there was no answer; `error`: why it did not arrive, empty if it did;
    `arrived`: it may have been read all the same."""

    status: int | None = None
    error: str = ""
    arrived: bool = False
    retry_after_s: float = 0.0

    @property
    def refused(self) -> bool:
        """The receiver will not take these alerts, however often it gets them."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in _NOT_NOW


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Make one request; redirects are not followed, proxies not used. Never raises for what the network does."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = HTTPSConnection if secure else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.connect()
    except (OSError, HTTPException, UnicodeError) as error:
        return Answer(error=f"no connection: {reason(error)}")
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sock = connection.sock  # the connection lets go of it while the answer is still to be read
        with cut_off(lambda: sock):
            connection.request("POST", target, body, {"Content-Type": "application/json", **_login(url), **headers})
            response = connection.getresponse()
            if 200 <= response.status < 300:
                return Answer(response.status)
            said = "" if response.status in _NOT_NOW else _line(response.read(500))
        return Answer(
            response.status,
            f"HTTP {response.status}{f': {said}' if said else ''}",
            retry_after_s=_retry_after(response.getheader("Retry-After"), datetime.now(UTC)),
        )
    except (OSError, HTTPException, ValueError) as error:
        return Answer(error=f"{UNANSWERED}: {reason(error)}", arrived=True)
    finally:
        connection.close()


@contextmanager
def cut_off(sock: Callable[[], socket.socket | None]) -> Iterator[None]:
    """A block in which the connection ends after some seconds, however alive it looks."""
    watchdog = threading.Timer(_ALTOGETHER_S, _cut, [sock])
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def post_signed(url: str, body: bytes, key: str, secret: SecretStr | None) -> Answer:
    """Make one request as receivers expect it: with time and `Idempotency-Key`, and signed if there is a secret."""
    timestamp = str(int(time.time()))
    headers = {TIMESTAMP: timestamp, KEY: key}
    if secret:
        headers[SIGNATURE] = sign(secret, timestamp, body)
    return post(url, body, headers)


def pause_after(attempts: int, answer: Answer) -> float:
    """Seconds until what has failed so often is tried again."""
    return max(min(_PAUSE_S * 2.0 ** min(attempts - 1, 30), _LONGEST_PAUSE_S), answer.retry_after_s)


def _cut(sock: Callable[[], socket.socket | None]) -> None:
    with suppress(OSError):  # it may have ended by itself just now
        if found := sock():
            found.shutdown(socket.SHUT_RDWR)


def _login(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def reason(error: Exception) -> str:
    """What a network's error says, in one line."""
    if isinstance(error, TimeoutError):
        return "timed out"
    return _line(str(error).encode()) or type(error).__name__


def _line(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").replace("\0", "").split())[:200]


def _retry_after(value: str | None, now: datetime) -> float:
    """Seconds, from a number or a date; 0 for what is neither."""
    if not value:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdigit() else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_S)


# ---------------------------------------------------------------------------------------------- delivery


@dataclass
class Delivered:
    """What a call did. `failed`: tries that are to be repeated; `dropped`: refused by the receiver or given up;
    `next_due_s`: seconds until there is something to do, None if nothing waits."""

    requests: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    next_due_s: float | None = None


def deliver(conn: Connection, policy: Policy, wait_s: float = 0.0) -> Delivered:
    """Make all deliveries that are due, and those that come due within `wait_s` seconds.

    `conn` must be outside of a transaction: nothing is locked while a receiver thinks. Any number of processes may do
    this at the same time. Routes take turns; who wants one not to wait for another calls with a policy for each.
    Raises ValueError within a transaction.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE or not conn.autocommit:
        raise ValueError("deliver() needs an autocommit connection outside of a transaction")
    done = Delivered()
    deadline = time.monotonic() + wait_s
    while True:
        done.dropped += store.give_up(conn, policy.routes, policy.give_up_s)
        if store.next_due(conn, policy.routes) == 0:
            _deliver_due(conn, policy, done)
        done.next_due_s = store.next_due(conn, policy.routes)
        if done.next_due_s is None or time.monotonic() + done.next_due_s >= deadline:
            return done
        time.sleep(max(_LOOK_S, done.next_due_s))


def _deliver_due(conn: Connection, policy: Policy, done: Delivered) -> None:
    """Make requests until nothing is due; a route that fails is not asked a second time."""
    routes = set(policy.routes)
    while routes and (batch := store.due(conn, policy.batch, routes, LEASE_S)):
        if not _Request(conn, policy, done).make(batch):
            routes.discard(batch[0].route)


@dataclass(frozen=True)
class _Request:
    """One claimed batch on its way."""

    conn: Connection
    policy: Policy
    done: Delivered

    def make(self, batch: Sequence[Due]) -> bool:
        """Send and settle a batch, in halves where the receiver refuses a part of it; False if the route rests."""
        parts: list[Sequence[Due]] = [batch]
        refused: list[tuple[Due, str]] = []
        taken = False
        while parts:
            part = parts.pop()
            answer = self._send(part)
            if not answer.error:
                taken = True
                store.delivered(self.conn, part)
                self.done.delivered += len(part)
            elif answer.refused and len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                store.renew(self.conn, [one for half in parts for one in half] + [one for one, _ in refused], LEASE_S)
            elif answer.refused and (taken or len(refused) + 1 < _REFUSES_ALL):
                refused.append((part[0], answer.error))
            else:
                # What was refused alone while none was taken may be as good as the rest.
                again = [*part, *(one for left in parts for one in left)]
                if not taken:
                    again += [one for one, _ in refused]
                    refused = []
                self._drop(refused)
                self._put_off(again, answer)
                return False
        self._drop(refused)
        return True

    def _send(self, batch: Sequence[Due]) -> Answer:
        alerts = store.read(self.conn, [one.alert_id for one in batch])
        body = message(
            [(one.event, alerts[one.alert_id]) for one in batch if one.alert_id in alerts],
            self.policy.url,
            datetime.now(UTC),
        )
        self.done.requests += 1
        return post_signed(self.policy.routes[batch[0].route], body, idempotency_key(batch), self.policy.secret)

    def _put_off(self, batch: Sequence[Due], answer: Answer) -> None:
        attempts = store.tries_on(self.conn, batch)
        pause = pause_after(attempts, answer)
        # Once a request has had no answer, what it held may have arrived, whatever later ones are answered.
        keep = [one for one in batch if one.unanswered and not answer.arrived]
        for group, error in (
            ([one for one in batch if one not in keep], answer.error),
            (keep, f"{UNANSWERED} at first, then {answer.error}"),
        ):
            if group:
                store.put_off(self.conn, group, error, attempts, pause)
        self.done.failed += len(batch)

    def _drop(self, refused: Sequence[tuple[Due, str]]) -> None:
        for one, error in refused:
            store.drop(self.conn, [one], f"refused: {error}")
        self.done.dropped += len(refused)
