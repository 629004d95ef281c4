"""Alerts without waiting for a run: a warm lane reacts to its own anomalies, in a thread of its own.

Belongs here: the thread, and how much it takes on. Does not belong here: what an anomaly leads to (`react.py`).

Whatever this thread does not do, because it is busy, broken or killed, the engine's run does: the anomalies are on the
topic before this thread hears of them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

import psycopg

from dash_pipeline.alerts.deliver import deliver
from dash_pipeline.alerts.rules import Policy
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError, first_line
from dash_pipeline.models.champions import Champions
from dash_pipeline.predictions.react import react
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import Stored

log = logging.getLogger(__name__)

# More at once is a flood: the engine takes it in turns, beside the lane.
_AT_ONCE = 20
_WAITING = 10


class DirectAlerts:
    """Reacts to anomalies that are handed to it; never raises, never blocks who hands them over."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self._settings, self._run_id = settings, run_id
        self._policy = Policy.of(settings)
        self._chains = load_chains(settings.chains_file)
        self._champions = Champions(settings)
        self._queue: queue.Queue[Sequence[Stored] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="direct-alerts", daemon=True)

    def start(self) -> None:
        """Start the thread, and the looks for champions."""
        self._champions.start()
        self._thread.start()

    def take(self, anomalies: Sequence[Stored]) -> None:
        """React to these soon, as far as there is time; the rest is the engine's."""
        try:
            self._queue.put_nowait(anomalies)
        except queue.Full:
            log.info("%d anomalies are left to the prediction engine", len(anomalies))

    def close(self, wait_s: float) -> None:
        """Finish what was taken, as far as that goes within the time."""
        if self._thread.ident is not None:
            try:
                self._queue.put_nowait(None)
                self._thread.join(wait_s)
            except queue.Full:
                pass
        self._champions.close()

    def _run(self) -> None:
        conn: db.Connection | None = None
        while (anomalies := self._queue.get()) is not None:
            told = [one for one in anomalies if one.retracted or self._policy.tells(one.severity)][:_AT_ONCE]
            if not told:
                continue
            try:
                conn = conn or db.connect(self._settings)
                with conn.transaction():
                    react(conn, self._policy, self._chains, self._champions, told, self._run_id)
                deliver(conn, self._policy)
            except Exception as error:
                foreseen = isinstance(error, DashError | psycopg.Error)
                text = first_line(error)
                log.warning("alerts are left to the prediction engine: %s", text, exc_info=not foreseen)
                if conn is not None:
                    conn.close()
                    conn = None
        if conn is not None:
            conn.close()
