"""Every metric, once: the list that exporter, lanes, alert rules and dashboard are made from.

Belongs here: names, types, labels, what they mean, and how values become Prometheus' families. Does not belong here:
reading values (`exporter.py`, `microbatch/record.py`,
`predictions/engine.py`), limits (`deployments/monitoring/`).

Names follow Prometheus' conventions: base units, `_total` for counters, the unit last otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

Source = Literal["platform", "dagster", "machine", "exporter", "lane", "engine"]

#: Upper bounds of the latency histogram's buckets, seconds.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True)
class Metric:
    """`unit`: what a value counts; `labels`: their names, in order; `source`: who shows it: `dash-pipeline metrics`
    (platform, dagster, machine, exporter), or a run of a lane or of the engine."""

    name: str
    type: Literal["gauge", "counter", "histogram"]
    unit: str
    labels: tuple[str, ...]
    source: Source
    help: str


@dataclass(frozen=True)
class Histogram:
    """A histogram's value. `counts`: of each bucket of BUCKETS_S and of what is above them, not cumulated; `sum`: of
    all values, seconds."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    sum: float = 0.0

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(tuple(map(sum, zip(self.counts, other.counts, strict=True))), self.sum + other.sum)


#: One value: the metric's name, its labels' values in their order, the value.
Sample = tuple[str, tuple[str, ...], float | Histogram]


def _gauge(name: str, unit: str, labels: str, source: Source, about: str) -> Metric:
    return Metric(name, "gauge", unit, tuple(labels.split()), source, about)


def _counter(name: str, unit: str, labels: str, source: Source, about: str) -> Metric:
    return Metric(name, "counter", unit, tuple(labels.split()), source, about)


_LIST = (
    _gauge("dash_lag_events", "events", "chain topic", "platform", "Messages on Kafka that are not in the tables yet."),
    _counter("dash_topic_end_offset_total", "offsets", "topic partition", "platform", "The offset behind the newest"
             " message of a partition."),
    _counter("dash_topic_committed_offset_total", "offsets", "topic partition", "platform", "The next offset to be"
             " ingested of a partition."),
    _gauge("dash_commit_age_seconds", "seconds", "chain", "platform", "Seconds since the newest commit of a chain."),
    _gauge("dash_event_age_seconds", "seconds", "chain", "platform", "Seconds from the time of a chain's newest block"
           " to now."),
    _gauge("dash_recent_dead_letters", "messages", "chain", "platform", "Messages refused within the last hour."),
    _gauge("dash_search_pending_batches", "batches", "chain", "platform", "Committed micro-batches that the search"
           " indexes do not show yet."),
    _gauge("dash_search_behind_seconds", "seconds", "chain", "platform", "Seconds since the commit of the oldest"
           " micro-batch that the search indexes do not show yet."),
    _gauge("dash_anomalies_unpublished", "anomalies", "", "platform", "Anomalies that Kafka does not show yet."),
    _gauge("dash_alert_deliveries_due", "deliveries", "", "platform", "Alerts to webhooks that are due now."),
    _gauge("dash_alerts_unindexed", "alerts", "", "platform", "Alerts that the search index does not show yet."),
    _gauge("dash_notices_open", "notices", "severity", "platform", "Notices to operators that hold."),
    _gauge("dash_notices_waiting", "messages", "channel", "platform", "Messages to operators that wait for a channel."),
    _gauge("dash_archived_rows", "rows", "", "platform", "Rows in the archive."),
    _gauge("dash_archived_bytes", "bytes", "", "platform", "Size of the archive's objects."),
    _gauge("dash_archive_age_seconds", "seconds", "", "platform", "Seconds since an object was last archived."),
    _gauge("dash_database_size_bytes", "bytes", "", "platform", "Size of the platform's database."),
    _gauge("dash_table_size_bytes", "bytes", "table", "platform", "Size of a hot table with its indexes."),
    _gauge("dash_lanes", "runs", "chain", "dagster", "Runs of lanes that are queued, starting, running or stopping."),
    _gauge("dash_runs", "runs", "status", "dagster", "Runs that have not ended, by status."),
    _gauge("dash_recent_runs", "runs", "job status", "dagster", "Runs that ended within the last hour, by outcome; the"
           " newest 1,000."),
    _gauge("dash_backup_age_seconds", "seconds", "what", "dagster", "Seconds since the newest backup."),
    _gauge("dash_drill_age_seconds", "seconds", "what", "dagster", "Seconds since the last good restore drill."),
    _gauge("dash_daemon_up", "1 or 0", "daemon", "dagster", "Whether a daemon of Dagster's that must run is healthy."),
    _gauge("dash_stack_memory_bytes", "bytes", "server", "machine", "Memory of a server of the local stack and its"
           " processes (PSS)."),
    _counter("dash_stack_cpu_seconds_total", "seconds", "server", "machine", "Processor time of the processes that a"
             " server of the local stack has now."),
    _gauge("dash_disk_free_bytes", "bytes", "", "machine", "Free space where the local stack's data is, else here."),
    _gauge("dash_disk_size_bytes", "bytes", "", "machine", "Size of that file system."),
    _gauge("dash_memory_available_bytes", "bytes", "", "machine", "Memory of this machine that programs could get."),
    _gauge("dash_memory_size_bytes", "bytes", "", "machine", "Memory of this machine."),
    _gauge("dash_source_up", "1 or 0", "source", "exporter", "Whether a source of metrics answered."),
    _gauge("dash_source_duration_seconds", "seconds", "source", "exporter", "Seconds that asking a source took."),
    _counter("dash_lane_batches_total", "batches", "chain lane", "lane", "Micro-batches committed by a lane's run."),
    _counter("dash_lane_events_total", "events", "chain lane", "lane", "Messages committed by a lane's run."),
    _counter("dash_lane_bytes_total", "bytes", "chain lane", "lane", "Size of these messages."),
    _counter("dash_lane_rows_total", "rows", "chain lane table", "lane", "Rows written by a lane's run."),
    _counter("dash_lane_dead_letters_total", "messages", "chain lane", "lane", "Messages refused by a lane's run."),
    _counter("dash_lane_errors_total", "errors", "chain lane", "lane", "Failures after which a lane's run tried"
             " again."),
    Metric("dash_lane_latency_seconds", "histogram", "seconds", ("chain", "lane", "stage"), "lane", "Where an event's"
           " time went: ingestion (append to read), processing (read to the first statement), output (to the commit),"
           " end_to_end."),
    _gauge("dash_engine_last_run_end_seconds", "Unix time", "", "engine", "When the prediction engine's last run"
           " ended."),
    _gauge("dash_engine_last_run_duration_seconds", "seconds", "", "engine", "How long it took."),
    _gauge("dash_engine_last_run_anomalies", "anomalies", "", "engine", "Anomalies that it was told of."),
    _gauge("dash_engine_last_run_predictions", "predictions", "", "engine", "Predictions that it made."),
    _gauge("dash_engine_last_run_alerts", "alerts", "", "engine", "Alerts that it raised."),
    _gauge("dash_engine_last_run_deliveries", "deliveries", "result", "engine", "Deliveries to webhooks: delivered, or"
           " failed and to be tried again."),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _LIST}


def families(samples: Iterable[Sample]) -> list[Family]:
    """Samples as Prometheus' families, in the list's order. Raises KeyError for a metric that is not in the list, and
    ValueError for labels that are not its own."""
    found: dict[str, Any] = {}
    for name, labels, value in samples:
        metric = METRICS[name]
        if len(labels) != len(metric.labels):
            raise ValueError(f"{name} has the labels {metric.labels}, not {len(labels)}")
        if name not in found:
            found[name] = _empty(metric)
        if isinstance(value, Histogram):
            found[name].add_metric(labels, _cumulated(value), value.sum)
        else:
            found[name].add_metric(labels, value)
    return [found[name] for name in METRICS if name in found]


def _empty(metric: Metric) -> Family:
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    found: Family = kinds[metric.type](metric.name, metric.help, labels=metric.labels)
    return found


def _cumulated(value: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], value.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


class Collected:
    """Families for prometheus_client, which wants an object."""

    def __init__(self, found: Iterable[Family]) -> None:
        self._found = list(found)

    def collect(self) -> Iterable[Family]:
        """The families."""
        return self._found


def publish(
    push_url: str | None, folder: Any, job: str, grouping: Mapping[str, str], samples: Iterable[Sample]
) -> None:
    """Show a run's samples to Prometheus: at a Pushgateway, in a file of `folder`, or both; neither does nothing.

    What `job` and `grouping` (by values that come again, not by run) name is replaced. Raises OSError.
    """
    from prometheus_client import CollectorRegistry, push_to_gateway, write_to_textfile

    if not (push_url or folder):
        return
    registry = CollectorRegistry()
    registry.register(Collected(families(samples)))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        name = "-".join([job, *grouping.values()]).replace("/", "_")
        write_to_textfile(str(folder / f"{name}.prom"), registry)
    if push_url:
        push_to_gateway(push_url, job, registry, dict(grouping), timeout=5)
