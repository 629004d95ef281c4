"""`dash-pipeline metrics`: what a scrape shows, read when it is asked for.

Belongs here: reading the platform, Dagster and this machine, and the page. Does not belong here: names and meanings
(`metrics.py`), what lanes count (`microbatch/record.py`; their files are shown here, too).

A source that does not answer leaves its metrics out and says so (`dash_source_up`): a scrape never fails for it.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError, Unavailable, first_line
from dash_pipeline.lag import ExtentReader
from dash_pipeline.metrics import Sample, families
from dash_pipeline.settings import Settings, stack_dir
from dash_pipeline.storage import alerts, anomalies, health, notices
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.tables import HISTORIES
from dash_pipeline.topics import chain_topics

if TYPE_CHECKING:
    from dash_pipeline.stack import Stack

log = logging.getLogger(__name__)

# A file that nobody has written to for so long is of a lane that is no more.
_AGED_S = 900.0
# Sizes are counted by walking through all chunks.
_SIZES_EVERY_S = 60.0
_RECENT_S = 3600.0
_BACKUPS = ("database", "search", "kafka")
_DRILLS = {"database": "drill", "search": "search_drill"}
_CLOCK_TICK = os.sysconf("SC_CLK_TCK")

_DAGSTER = """query ($since: Float!) {
  live: runsOrError(filter: {statuses: [QUEUED, NOT_STARTED, STARTING, STARTED, CANCELING]}, limit: 2000) {
    ... on Runs { results { status tags { key value } } } }
  ended: runsOrError(filter: {statuses: [SUCCESS, FAILURE, CANCELED], updatedAfter: $since}, limit: 1000) {
    ... on Runs { results { jobName status } } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
  %s
}"""
_NEWEST = """%s: assetOrError(assetKey: {path: ["backups", "%s"]}) {
    ... on Asset { assetMaterializations(limit: 1) { timestamp } } }"""


class Exporter:
    """Collects when it is scraped; one scrape at a time, because the connections are kept.

    `dagster_url`: where GraphQL is asked for.
    """

    def __init__(self, settings: Settings, dagster_url: str = "") -> None:
        self._settings, self._url = settings, (dagster_url or settings.dagster_url).rstrip("/")
        self._chains = list(load_chains(settings.chains_file))
        self._reader = ExtentReader(settings)
        self._sizes: tuple[float, list[Sample]] = (0.0, [])
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Family]:
        """Every family, those of lanes' files included."""
        with self._lock:
            yield from families(self._samples())
            yield from merged(textfiles(self._settings.metrics_dir, _AGED_S))

    def close(self) -> None:
        """Let go of Kafka."""
        self._reader.close()

    def _samples(self) -> list[Sample]:
        sources: dict[str, Callable[[], Iterable[Sample]]] = {
            "database": self._database,
            "kafka": self._kafka,
            "dagster": partial(dagster, self._url),
            "machine": machine,
        }
        found: list[Sample] = []
        for source, read in sources.items():
            began, up = time.monotonic(), 1
            try:
                found += list(read())
            except (DashError, psycopg.Error, OSError) as error:
                log.warning("%s: %s", source, first_line(error))
                up = 0
            found += [
                ("dash_source_up", (source,), up),
                ("dash_source_duration_seconds", (source,), time.monotonic() - began),
            ]
        return found

    def _kafka(self) -> Iterator[Sample]:
        extent = self._reader.read([topic for chain in self._chains for topic in chain_topics(chain)])
        with db.session(self._settings) as conn:
            committed = db.committed_offsets(conn)
        behind = Counter[str]()
        for (topic, number), lag in extent.lag(committed).items():
            place = (topic, str(number))
            behind[topic] += lag
            yield "dash_topic_end_offset_total", place, extent.end[topic, number]
            yield "dash_topic_committed_offset_total", place, committed.get((topic, number), 0)
        for topic, lag in behind.items():
            yield "dash_lag_events", (topic.split(".", 1)[0], topic), lag

    def _database(self) -> Iterator[Sample]:
        with db.session(self._settings) as conn:
            conn.execute("SET statement_timeout = '10s'")
            yield from _of_chains(conn, self._chains)
            yield "dash_anomalies_unpublished", (), anomalies.count_unpublished(conn)
            due, unindexed = alerts.waiting(conn)
            yield "dash_alert_deliveries_due", (), due
            yield "dash_alerts_unindexed", (), unindexed
            open_, waiting = notices.open_by_severity(conn), notices.waiting(conn)
            for severity in ("low", "medium", "high"):
                yield "dash_notices_open", (severity,), open_.get(severity, 0)
            for channel in {*self._settings.notify_channels, *waiting}:
                yield "dash_notices_waiting", (channel,), waiting.get(channel, 0)
            if time.monotonic() - self._sizes[0] > _SIZES_EVERY_S or not self._sizes[1]:
                self._sizes = (time.monotonic(), list(_sizes(conn)))
        yield from self._sizes[1]


def _of_chains(conn: db.Connection, names: list[str]) -> Iterator[Sample]:
    pending = health.search_pending(conn)
    for name, one in health.chains(conn, names).items():
        yield "dash_recent_dead_letters", (name,), one.dead_letters
        if one.commit_age_s is not None:
            yield "dash_commit_age_seconds", (name,), one.commit_age_s
        if one.event_age_s is not None:
            yield "dash_event_age_seconds", (name,), one.event_age_s
        batches, oldest_s = pending.get(name, (0, 0.0))
        yield "dash_search_pending_batches", (name,), batches
        yield "dash_search_behind_seconds", (name,), oldest_s


def _sizes(conn: db.Connection) -> Iterator[Sample]:
    rows, size, age_s = health.archived(conn)
    yield "dash_archived_rows", (), rows
    yield "dash_archived_bytes", (), size
    if age_s is not None:
        yield "dash_archive_age_seconds", (), age_s
    yield "dash_database_size_bytes", (), health.database_bytes(conn)
    for table, taken in db.relation_bytes(conn, [table.relation for table in HISTORIES.values()]).items():
        yield "dash_table_size_bytes", (table,), taken


# ---------------------------------------------------------------------------------------------- Dagster


def dagster(url: str) -> list[Sample]:
    """Runs, daemons, backups and drills, from one question to Dagster's GraphQL. Raises Unavailable."""
    from dash_pipeline.stack.servers.base import NotReadyError, http_json

    assets = [*_BACKUPS, *_DRILLS.values()]
    query = _DAGSTER % "\n".join(_NEWEST % (name, name) for name in assets)
    variables = {"since": time.time() - _RECENT_S}
    try:
        answer = http_json(f"{url}/graphql", body={"query": query, "variables": variables}, timeout_s=8)
    except NotReadyError as error:
        raise Unavailable(str(error)) from error
    if answer.get("errors"):
        raise Unavailable(f"{url}/graphql: {answer['errors'][0]['message']}")
    return list(_of_dagster(answer["data"], time.time()))


def _of_dagster(data: dict[str, Any], now: float) -> Iterator[Sample]:
    live = data["live"]["results"]
    statuses = Counter(run["status"].lower() for run in live)
    for status in ("queued", "not_started", "starting", "started", "canceling"):
        yield "dash_runs", (status,), statuses[status]
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in live]
    lanes = Counter(one["dash/chain"] for one in tags if "dash/lane" in one and "dash/chain" in one)
    yield from (("dash_lanes", (chain,), count) for chain, count in lanes.items())
    for (job, status), count in Counter(
        (run["jobName"], run["status"].lower()) for run in data["ended"]["results"]
    ).items():
        yield "dash_recent_runs", (job, status), count
    for one in data["instance"]["daemonHealth"]["allDaemonStatuses"]:
        if one["required"]:
            yield "dash_daemon_up", (one["daemonType"].lower(),), int(bool(one["healthy"]))
    ages = {}
    for name in (*_BACKUPS, *_DRILLS.values()):
        if newest := data[name].get("assetMaterializations"):
            ages[name] = now - float(newest[0]["timestamp"]) / 1e3
    for what in _BACKUPS:
        if what in ages:
            yield "dash_backup_age_seconds", (what,), ages[what]
    for what, drill in _DRILLS.items():
        if drill in ages:
            yield "dash_drill_age_seconds", (what,), ages[drill]


# ---------------------------------------------------------------------------------------------- machine


def machine() -> Iterator[Sample]:
    """Memory and disk of this machine, and what the local stack's servers take, if it runs here."""
    from dash_pipeline.stack import Stack

    with suppress(DashError, OSError):
        yield from _stack(Stack.at())
    folder = next(path for path in (stack_dir() / "data", stack_dir(), Path.cwd()) if path.exists())
    usage = shutil.disk_usage(folder)
    yield "dash_disk_free_bytes", (), usage.free
    yield "dash_disk_size_bytes", (), usage.total
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    yield "dash_memory_available_bytes", (), int(lines["MemAvailable"].split()[0]) * 1024
    yield "dash_memory_size_bytes", (), int(lines["MemTotal"].split()[0]) * 1024


def _stack(stack: Stack) -> Iterator[Sample]:
    from dash_pipeline.stack import processes

    if not stack.supervisor.running():
        return
    for state in stack.supervisor.states():
        if state.pid is not None:
            pids = processes.tree(state.pid)
            yield "dash_stack_memory_bytes", (state.name,), processes.memory_bytes(pids)
            yield "dash_stack_cpu_seconds_total", (state.name,), sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICK


# ---------------------------------------------------------------------------------------------- files, page


def textfiles(folder: Path | None, aged_s: float) -> list[Family]:
    """The families of a folder's files; those that are older than `aged_s` are deleted."""
    found: list[Family] = []
    for file in sorted(folder.glob("*.prom")) if folder else []:
        try:
            if time.time() - file.stat().st_mtime > aged_s:
                file.unlink()
                continue
            found += text_string_to_metric_families(file.read_text())
        except (OSError, ValueError) as error:
            log.warning("%s: %s", file, first_line(error))
    return found


def merged(found: Iterable[Family]) -> list[Family]:
    """One family for each name, with the samples of all."""
    by_name: dict[str, Family] = {}
    for family in found:
        if family.name in by_name:
            by_name[family.name].samples += family.samples
        else:
            by_name[family.name] = family
    return list(by_name.values())


def serve(settings: Settings, host: str, port: int, dagster_url: str = "") -> tuple[Any, Exporter]:
    """Listen for scrapes of /metrics in a thread; returns the server and what it shows. Raises DashError when the
    address cannot be listened at."""
    exporter, registry = Exporter(settings, dagster_url), CollectorRegistry(auto_describe=False)
    registry.register(exporter)
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise DashError(f"{host}:{port}: {error.strerror or error}; --host, --port choose another address") from None
    log.info("metrics at http://%s:%d/metrics since %s", host, server.server_port, datetime.now(UTC).isoformat())
    return server, exporter
