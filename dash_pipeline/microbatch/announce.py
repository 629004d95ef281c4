"""From committed anomalies to the world: topic dash.anomalies first, then, if settings say so, alerts.

Belongs here: the thread beside a lane. Does not belong here: detection (`detect.py`), what an anomaly leads to
(`dash_pipeline/predictions/`).

The table is the outbox: an anomaly whose newest revision is not on the topic yet is published, flushed, and marked. A
crash in between publishes it again, with the same id and revision. What a run leaves the next one publishes first, and
the lag sensor starts a lane for that alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import psycopg
from confluent_kafka import Producer

from dash_pipeline.errors import DashError, Unavailable, first_line
from dash_pipeline.kafka import confluent_options
from dash_pipeline.settings import Settings
from dash_pipeline.storage import anomalies as store
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import Stored
from dash_pipeline.topics import ANOMALIES

log = logging.getLogger(__name__)

_AT_ONCE = 500
_FLUSH_S = 30.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
# Looked at without being told: what another lane's crash left.
_LOOK_EVERY_S = 30.0

#: Is handed anomalies once they are published; must return at once.
Take = Callable[[Sequence[Stored]], None]


class Announcer:
    """Publishes one chain's anomalies in a thread beside a lane; what fails is logged and tried again, and never the
    lane's matter. Several may serve the same chain (a lane each): they take turns by rows."""

    def __init__(self, settings: Settings, chain: str, take: Take = lambda anomalies: None) -> None:
        """`take` is called from the thread with what has been published."""
        self._settings, self._chain, self._take = settings, chain, take
        self._producer: Producer | None = None
        self._conn: db.Connection | None = None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"announcer-{chain}", daemon=True)

    def start(self) -> None:
        """Start; first with what an earlier run left."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """Anomalies were committed."""
        self._wake.set()

    def close(self, drain_timeout_s: float) -> None:
        """Publish what is left, as far as that goes within the time, and end."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(drain_timeout_s)

    def _run(self) -> None:
        pause = _PAUSE_S
        self._connect_to_kafka()
        while True:
            self._wake.wait(_LOOK_EVERY_S)
            self._wake.clear()
            last = self._stop.is_set()
            try:
                while published := self.publish():
                    self._take(published)
                    if len(published) < _AT_ONCE:
                        break
                pause = _PAUSE_S
            except (DashError, psycopg.Error) as error:
                log.warning("%s: anomalies wait: %s", self._chain, first_line(error))
                self._disconnect()
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                self._wake.set()
            if last:
                self._disconnect()
                self._producer = None
                return

    def publish(self) -> list[Stored]:
        """Publish the oldest unpublished anomalies, a bounded number; returns them. Raises Unavailable."""
        conn = self._connection()
        with conn.transaction():
            waiting = store.lock_unpublished(conn, self._chain, _AT_ONCE)
            if waiting:
                self._produce(waiting)
                store.mark_published(conn, waiting)
        return waiting

    def _produce(self, anomalies: Sequence[Stored]) -> None:
        producer = self._connect_to_kafka()
        failed: list[str] = []
        for one in anomalies:
            producer.produce(
                ANOMALIES,
                one.message(),
                key=f"0x{one.token.hex()}",
                on_delivery=lambda error, _: failed.append(error.str()) if error else None,
            )
        if producer.flush(_FLUSH_S) or failed:
            raise Unavailable(f"{ANOMALIES}: {failed[0] if failed else 'the broker does not answer'}")

    def _connect_to_kafka(self) -> Producer:
        """At the start, because a broker takes a while to know a new producer: the first anomaly must not wait."""
        if self._producer is None:
            self._producer = Producer(confluent_options(self._settings) | {"enable.idempotence": True, "linger.ms": 0})
        return self._producer

    def _connection(self) -> db.Connection:
        if self._conn is None:
            self._conn = db.connect(self._settings)
        return self._conn

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
