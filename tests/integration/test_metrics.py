"""Metrics from real servers: a lane's and the engine's run, a Dagster with something in it, and Debian's own
Prometheus, Alertmanager and Pushgateway that take them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from prometheus_client.parser import text_string_to_metric_families

from assets.ingestion.ingest import drain_name
from dash_pipeline import settings as settings_module
from dash_pipeline.definitions import build_defs
from dash_pipeline.exporter import serve
from dash_pipeline.metrics import METRICS
from dash_pipeline.models.champions import Champions
from dash_pipeline.notify.notice import Notice
from dash_pipeline.notify.tell import tell
from dash_pipeline.predictions import engine
from dash_pipeline.settings import Channel, Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale as db
from tests.chain import ROWS, branch
from tests.environment import put_in_environment
from tests.lane import QUICK, Market, new_market, whole
from tests.monitoring import alertmanager_files, free_port, programs, running

MONITORING = Path(__file__).parents[2] / "deployments" / "monitoring"
BLOCKS = 20
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Shown:
    """A platform that has done something, and the address of its metrics."""

    market: Market
    settings: Settings
    sent: int
    url: str
    gateway: str
    page: Page


def read(url: str) -> Page:
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def of(page: Page, name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def tools(stack: Stack) -> Path:
    return programs(stack.layout.opt)


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A webserver on an instance with lanes, runs, backups and a drill."""
    home = tmp_path_factory.mktemp("dagster")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with DagsterInstance.from_config(str(home)) as instance:
        tags = {"dash/lane": "c-0", "dash/chain": "c"}
        create_run_for_test(instance, job_name="ingest_c", status=DagsterRunStatus.STARTED, tags=tags)
        create_run_for_test(instance, job_name="work", status=DagsterRunStatus.FAILURE)
        for name in ("database", "search", "kafka", "drill", "search_drill"):
            instance.report_runless_asset_event(AssetMaterialization(AssetKey(["backups", name])))
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "dagster_webserver", "--empty-workspace", "-h", "127.0.0.1", "-p", str(port)]
    # It asks where it lives by itself.
    with running(["env", f"DAGSTER_HOME={home}", *command], f"{url}/server_info", home):
        yield url


@pytest.fixture(scope="module")
def shown(
    migrated: Settings,
    stack: Stack,
    dagster: str,
    tools: Path,
    unique: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shown]:
    folder, chain = tmp_path_factory.mktemp("metrics"), unique("c")
    (folder / "chains.toml").write_text(f'[{chain}]\ntitle = "C"\nchain_id = 31337\nblock_time_s = 1.0\n')
    gateway = f"127.0.0.1:{free_port()}"
    command: list[str | Path] = [tools / "prometheus-pushgateway", f"--web.listen-address={gateway}"]
    with running(command, f"http://{gateway}/-/ready", folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASH_STACK_DIR", str(stack.layout.home))
        settings = migrated.model_copy(
            update={
                "chains_file": folder / "chains.toml",
                "metrics_dir": folder / "lanes",
                "metrics_push_url": f"http://{gateway}",
                "notify_channels": {"ops": Channel(kind="webhook", url="http://127.0.0.1:1/")},
                "owner_routes": {"*": ["ops"]},
            }
        )
        market = new_market(settings, chain)
        sent = market.produce(whole(branch("A", 0, BLOCKS - 1, "-")) | {"token": [b"{"]})
        market.drain()
        _finish(settings)
        server, exporter = serve(settings, "127.0.0.1", 0, dagster)
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        try:
            yield Shown(market, settings, sent, url, f"http://{gateway}/metrics", read(url))
        finally:
            server.shutdown()
            server.server_close()
            exporter.close()


def _finish(settings: Settings) -> None:
    """What is slow to come by: a run of the engine with nothing to do, an archived object, a notice."""
    with Champions(settings) as champions:
        engine.run_engine(settings, [("dash.anomalies", 0)], champions, engine.Limits(0.2, 5), "engine")
    with db.connect(settings) as conn:
        conn.execute(
            "INSERT INTO ops.archive_manifest (object, table_name, chain, date, rows, bytes, sha256, content_hash,"
            " schema_version, encryption_key, ts_min, ts_max, block_min, block_max)"
            " VALUES ('o', 'blocks', 'c', '2024-01-01', 5, 700, '', '', 1, '', now(), now(), 0, 1)"
        )
        tell(conn, settings, Notice("lag/c", "high", "c", "c"))


def test_every_metric_of_the_list_is_shown_with_its_labels(shown: Shown) -> None:
    found: dict[str, set[frozenset[str]]] = {}
    for name, labels in shown.page:
        base = name
        for suffix in ("_bucket", "_count", "_sum"):
            if METRICS.get(name.removesuffix(suffix), None):
                base = name.removesuffix(suffix)
        found.setdefault(base, set()).add(frozenset(label for label, _ in labels if label != "le"))
    assert found == {name: {frozenset(metric.labels)} for name, metric in METRICS.items()}
    assert all(of(shown.page, "dash_source_up", source=one) == 1 for one in ("database", "kafka", "dagster", "machine"))


def test_what_a_lane_counts_is_what_it_did(shown: Shown) -> None:
    page, chain = shown.page, shown.market.chain
    lane = {"chain": chain, "lane": f"{chain}-0"}
    assert of(page, "dash_lane_events_total", **lane) == shown.sent
    assert of(page, "dash_lane_dead_letters_total", **lane) == 1
    assert of(page, "dash_lane_rows_total", **lane, table="logs") == BLOCKS * ROWS["logs"]
    assert of(page, "dash_lane_errors_total", **lane) == 0
    for stage in ("ingestion", "processing", "output", "end_to_end"):
        assert of(page, "dash_lane_latency_seconds_count", **lane, stage=stage) == shown.sent
    sums = [of(page, "dash_lane_latency_seconds_sum", **lane, stage=stage) for stage in ("ingestion", "end_to_end")]
    assert 0 < sums[0] < sums[1] < 60 * shown.sent
    pushed = read(shown.gateway)
    labels = {**lane, "job": "dash_lane", "instance": ""}
    assert of(pushed, "dash_lane_events_total", **labels) == shown.sent


def test_what_the_exporter_reads_is_what_is_there(shown: Shown) -> None:
    page, chain = shown.page, shown.market.chain
    assert of(page, "dash_lag_events", chain=chain, topic=f"{chain}.logs") == 0
    assert of(page, "dash_topic_committed_offset_total", topic=f"{chain}.blocks", partition="0") == BLOCKS
    assert of(page, "dash_recent_dead_letters", chain=chain) == 1
    assert 0 <= of(page, "dash_commit_age_seconds", chain=chain) < 300
    assert of(page, "dash_lanes", chain="c") == of(page, "dash_runs", status="started") == 1
    assert of(page, "dash_recent_runs", job="work", status="failure") == 1
    assert 0 <= of(page, "dash_drill_age_seconds", what="search") < 300
    assert of(page, "dash_notices_waiting", channel="ops") == of(page, "dash_notices_open", severity="high") == 1
    assert (of(page, "dash_archived_rows"), of(page, "dash_archived_bytes")) == (5, 700)
    assert of(page, "dash_stack_memory_bytes", server="timescale") > 1e6


def test_what_does_not_answer_is_said_and_leaves_the_rest_alone(shown: Shown) -> None:
    gone = shown.settings.model_copy(update={"kafka_bootstrap": "127.0.0.1:1", "metrics_dir": None})
    server, exporter = serve(gone, "127.0.0.1", 0, "http://127.0.0.1:1")
    try:
        page = read(f"http://127.0.0.1:{server.server_port}/metrics")
    finally:
        server.shutdown()
        server.server_close()
        exporter.close()
    up = {source: of(page, "dash_source_up", source=source) for source in ("database", "kafka", "dagster", "machine")}
    assert up == {"database": 1, "kafka": 0, "dagster": 0, "machine": 1}


def test_a_lane_that_cannot_show_its_metrics_commits_all_the_same(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sent = shown.market.produce(whole(branch("A", BLOCKS, BLOCKS + 1, f"A{BLOCKS - 1}")))
    for name in ("metrics_dir", "metrics_push_url"):
        nowhere = {"metrics_dir": tmp_path / "file" / "x", "metrics_push_url": "http://127.0.0.1:1"} | {name: None}
        done = shown.market.drain(QUICK, **nowhere)
        if name == "metrics_dir":
            assert done.messages == sent


def test_checkpoints_become_platform_health(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_environment(shown.settings, monkeypatch)
    chain = shown.market.chain
    rows = shown.market.query(
        "SELECT sum(messages)::int, sum(dead_letters)::int, bool_and(end_to_end_p50_ms <= end_to_end_p99_ms)"
        " FROM ops.checkpoints WHERE chain = %s AND lane = %s AND run_id = 'run'",
        chain, f"{chain}-0",
    )  # fmt: skip
    assert rows[0][0] >= shown.sent
    assert rows[0][1:] == (1, True)
    with db.connect(shown.settings) as conn:
        tell(conn, shown.settings, Notice(f"lag/{chain}", "medium", f"{chain}: events wait", "more"))
    try:
        with DagsterInstance.ephemeral() as instance:
            job = build_defs("lifecycle").resolve_job_def("platform_health")
            done = job.execute_in_process(instance=instance)
            (event,) = done.get_asset_materialization_events()
            (check,) = done.get_asset_check_evaluations()
    finally:
        settings_module.settings.cache_clear()
    found = {name: entry.value for name, entry in event.materialization.metadata.items()}
    assert event.asset_key == AssetKey(["platform_health", chain])
    for stage in ("ingestion", "processing", "output", "end_to_end"):
        assert 0 <= found[f"latency {stage} p50, ms"] <= found[f"latency {stage} p99, ms"]
    assert found["lag"] == 0
    assert found["events per s"] > 0
    assert found["last hours"].startswith("![latency, events/s and lag](data:image/png;base64,")
    assert len(found["last hours"]) < 40_000
    assert (check.passed, check.description) == (False, f"{chain}: events wait")
    assert drain_name(chain) not in done.dagster_run.job_name


# --- Debian's servers


def test_rules_and_configurations_are_taken(tools: Path) -> None:
    for command in (
        ["promtool", "check", "rules", "rules.yaml"],
        ["promtool", "check", "config", "prometheus.yaml"],
        ["promtool", "test", "rules", "rules.test.yaml", "rules.days.test.yaml"],
        ["amtool", "check-config", "alertmanager.yaml"],
    ):
        done = subprocess.run([tools / command[0], *command[1:]], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_dead_letter_on_kafka_is_an_alert_at_a_webhook(
    shown: Shown, tools: Path, tmp_path: Path, received: tuple[str, list[dict[str, Any]]]
) -> None:
    """Exporter, Prometheus with the rules as they are, Alertmanager with its example, a receiver."""
    hook, messages = received
    alertmanager, prometheus = (f"127.0.0.1:{free_port()}" for _ in range(2))
    config = (MONITORING / "alertmanager.yaml").read_text().replace("group_wait: 30s", "group_wait: 0s")
    (tmp_path / "alertmanager.yaml").write_text(config.replace("http://127.0.0.1:8080/", hook))
    config = (MONITORING / "prometheus.yaml").read_text().replace("127.0.0.1:9093", alertmanager)
    config = config.replace("127.0.0.1:9465", shown.url.split("/")[2]).replace("interval: 15s", "interval: 2s")
    (tmp_path / "prometheus.yaml").write_text(config.replace("scrape_timeout: 14s", "scrape_timeout: 2s"))
    (tmp_path / "rules.yaml").write_text((MONITORING / "rules.yaml").read_text())
    alertmanager_files(tools, tmp_path)
    sends: list[str | Path] = [
        tools / "prometheus-alertmanager", "--config.file=alertmanager.yaml", "--storage.path=alerts",
        f"--web.listen-address={alertmanager}", "--cluster.listen-address=",
    ]  # fmt: skip
    scrapes: list[str | Path] = [
        tools / "prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
        f"--web.listen-address={prometheus}",
    ]  # fmt: skip
    with (
        running(sends, f"http://{alertmanager}/-/ready", tmp_path),
        running(scrapes, f"http://{prometheus}/-/ready", tmp_path),
    ):
        deadline = time.monotonic() + 60
        while not messages and time.monotonic() < deadline:
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://{prometheus}/api/v1/targets", timeout=5) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
    assert [target["health"] for target in targets] == ["up"], targets
    alerts = [alert for message in messages for alert in message["alerts"]]
    found = {alert["labels"]["alertname"]: alert for alert in alerts}["DashDeadLetters"]
    assert found["status"] == "firing"
    assert found["annotations"]["summary"] == f"{shown.market.chain}: 1 messages were refused within an hour"


def test_the_command_listens_on_this_machine_alone_and_says_what_is_wrong(shown: Shown, stack: Stack) -> None:
    taken = shown.url.split("/")[2].rpartition(":")[2]
    environment = os.environ | {"DASH_STACK_DIR": str(stack.layout.home)}
    command = [str(Path(sys.executable).with_name("dash-pipeline")), "metrics", "--port", taken]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == f"127.0.0.1:{taken}: Address already in use; --host, --port choose another address"
