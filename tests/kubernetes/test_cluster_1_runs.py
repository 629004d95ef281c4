"""The chart on a real cluster: sensors start runs, runs are pods, tables are complete."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
import yaml

from benchmarks.autoscale_sim import Scenario
from dash_pipeline.storage import timescale
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import Object
from tests.kubernetes.market import CHAIN, JOB, course, feeding, lanes
from tests.kubernetes.release import Release, wait

pytestmark = pytest.mark.usefixtures("release")
START_WITHIN_S = 4


def test_the_api_takes_every_object_as_it_is(cluster: Cluster, rendered: list[Object]) -> None:
    """Nothing unknown, nothing doubled, in any of the values that come with the chart."""
    own = [one for one in rendered if "coreos.com" not in one["apiVersion"] and "keda" not in one["apiVersion"]]
    cluster.kubectl("create", "namespace", "chain", check=False)

    said = cluster.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", text=yaml.safe_dump_all(own)
    )  # fmt: skip

    assert len(said.splitlines()) == len(own), said


def test_a_burst_makes_several_pods_and_each_row_once(release: Release) -> None:
    seen = 0

    with feeding(release, whole=True):
        for _ in range(40):
            seen = max(seen, len(lanes(release)))
            if seen > 1:
                break
            wait("another look", lambda: True, 1)

    runs = release.runs(JOB)
    assert seen > 1, "one pod at a time"
    assert not [release.said(run["runId"]) for run in runs if run["status"] == "FAILURE"]
    assert all(run["tags"].get("dagster/sensor_name") == "lag_sensor" for run in runs)
    assert len({run["tags"]["dash/lane"] for run in runs}) > 1
    with timescale.connect(release.stores.settings()) as conn:
        placed = conn.execute(
            "SELECT count(DISTINCT partition) FROM ops.stream_offsets WHERE topic = %s AND next_offset > 0",
            (f"{CHAIN}.logs",),
        ).fetchone()
    assert placed == (8,)


@pytest.mark.skipif(not os.environ.get("DASH_TRACE"), reason="a measurement: DASH_TRACE=FILE.csv takes it")
def test_a_burst_takes_lanes_up_and_down(release: Release) -> None:
    """The scaled-down burst of `benchmarks/autoscale_sim.py`, for its option --trace."""
    scenario = Scenario(
        baseline=100, factor=50, burst_at_s=20, ramp_s=2, hold_s=10, decay_s=5, seconds=120, partitions=8, min_lanes=1,
        max_lanes=4, lag_per_lane=1_000, cooldown_s=10, down_after_s=30,
    )  # fmt: skip
    seen = course(release, scenario.rate, scenario.seconds, Path(os.environ["DASH_TRACE"]))

    assert max(seen) >= 3, seen
    assert seen[-1] < max(seen), seen


def test_a_run_is_a_pod_of_its_lanes_size_without_rights(release: Release) -> None:
    pods = [pod for pod in release.pods("dagster/run-id") if pod["metadata"]["labels"].get("dagster/job") == JOB]

    assert pods
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert not pod["spec"]["automountServiceAccountToken"]
        assert not any("serviceaccount" in mount["mountPath"] for mount in container["volumeMounts"])


@pytest.mark.patient
def test_from_request_to_start(release: Release) -> None:
    """Quiet: one run after the other, of a job that does little."""
    wait("quiet", lambda: not release.run_pods())
    took = []
    for _ in range(3):
        run_id = release.launch("check_blocks", "ingestion")
        wait("the run's end", lambda id_=run_id: release.run(id_)["status"] in ("SUCCESS", "FAILURE"))
        run = release.run(run_id)
        assert run["status"] == "SUCCESS", release.said(run_id)
        took.append(run["startTime"] - run["creationTime"])
    print("request to start, s:", ", ".join(f"{one:.1f}" for one in took))
    assert statistics.median(took) < START_WITHIN_S * 3, took  # on a machine that may be busy: the figure is printed


def test_logs_of_a_run_are_on_s3(release: Release) -> None:
    # A run's pod writes its log there when its step ends; the newest may still be at work.
    run = release.runs(JOB, limit=1, statuses=["SUCCESS"])[0]
    found = release.stores_bucket().keys(f"dagster-logs/storage/{run['runId']}/")

    assert found
