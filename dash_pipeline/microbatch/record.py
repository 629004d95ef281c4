"""What a lane leaves behind for those who look at it: a row per checkpoint, and metrics.

Belongs here: writing both, from the reporter's thread, never in the way of a commit. Does not belong here: measuring
(`latency.py`, `drain.py`), what the metrics are (`dash_pipeline/metrics.py`).

A lane's counters begin at 0 with each of its runs, which Prometheus knows as a reset: the run shows its zeros first.
What a run leaves stays until the lane's next one, so that the last numbers are seen, too.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import psycopg

from dash_pipeline.errors import DashError, first_line
from dash_pipeline.metrics import Histogram, Sample, publish
from dash_pipeline.settings import Settings
from dash_pipeline.storage import health
from dash_pipeline.storage import timescale as db

if TYPE_CHECKING:
    from dash_pipeline.microbatch.drain import Checkpoint
    from dash_pipeline.microbatch.lanes import Lane

log = logging.getLogger(__name__)

_COUNTERS = ("batches", "events", "bytes", "dead_letters", "errors")


class Recorder:
    """Of one run. `shown`: somebody gets its metrics. Nothing here raises for what a server does: a line in the log is
    all that a lane says about it."""

    def __init__(self, settings: Settings, lane: Lane, run_id: str) -> None:
        self._settings, self._lane, self._run_id = settings, lane, run_id
        self.shown = bool(settings.metrics_push_url or settings.metrics_dir)
        self._conn: db.Connection | None = None
        self._sums = Counter[str](dict.fromkeys(_COUNTERS, 0))
        self._rows = Counter[str]()
        self._latency: dict[str, Histogram] = {}

    def begin(self) -> None:
        """Show the zeros that this run begins with."""
        self._publish()

    def record(self, done: Checkpoint) -> None:
        """Keep a checkpoint's numbers."""
        self._sums.update(
            batches=done.batches, events=done.messages, bytes=done.bytes, dead_letters=done.dead_letters,
            errors=done.errors,
        )  # fmt: skip
        self._rows.update(done.rows)
        for stage, histogram in done.histograms.items():
            self._latency[stage] = self._latency.get(stage, Histogram()) + histogram
        self._publish()
        try:
            if self._conn is None:
                self._conn = db.connect(self._settings)
                self._conn.execute("SET statement_timeout = '5s'")
            health.keep_checkpoint(self._conn, self._lane.chain, self._lane.name, self._run_id, done)
        except (DashError, psycopg.Error) as error:
            log.warning("%s: a checkpoint is not in ops.checkpoints: %s", self._lane.name, first_line(error))
            self.close()

    def close(self) -> None:
        """Let go of the database."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _publish(self) -> None:
        lane = (self._lane.chain, self._lane.name)
        samples: list[Sample] = [(f"dash_lane_{name}_total", lane, self._sums[name]) for name in _COUNTERS]
        samples += [("dash_lane_rows_total", (*lane, table), rows) for table, rows in self._rows.items()]
        samples += [("dash_lane_latency_seconds", (*lane, stage), value) for stage, value in self._latency.items()]
        try:
            publish(
                self._settings.metrics_push_url, self._settings.metrics_dir, "dash_lane", {"lane": lane[1]}, samples
            )
        except OSError as error:
            log.warning("%s: metrics are not shown: %s", self._lane.name, first_line(error))
