"""Things break while the market is fed: nothing is lost, nothing is doubled, and what happened is said."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from tests.kubernetes.cluster import NODE_NAME, Cluster
from tests.kubernetes.market import SLOW, at_work, failed, feeding, lanes, rows
from tests.kubernetes.release import NAME, Release, wait

pytestmark = pytest.mark.usefixtures("release")
API_AWAY_S = 60


def kill(*words: str) -> int:
    """SIGKILL to the processes, of whichever pod, that have all these words in their command; how many there were."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            if all(word in line for word in words) and b"containerd-shim" not in line.encode():
                os.kill(int(folder.name), signal.SIGKILL)
                count += 1
        except OSError:
            continue
    return count


@pytest.mark.usefixtures("node")
@pytest.mark.patient
def test_a_runs_pod_is_killed(release: Release) -> None:
    with feeding(release):
        (victim, *_) = wait("a lane at work", lambda: at_work(release))
        assert kill("execute_run", victim)
        wait("the run to be failed", lambda: release.run(victim)["status"] == "FAILURE")

    assert "pod" in release.said(victim).lower()


@pytest.mark.patient
def test_a_runs_pod_is_evicted(release: Release) -> None:
    """As for a spot node that goes: the run commits what it has in hand and ends well."""
    with feeding(release):
        (victim, *_) = wait("a lane at work", lambda: at_work(release))
        (pod,) = [pod["metadata"]["name"] for pod in release.pods(f"dagster/run-id={victim}")]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction"
        release.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))
        wait("the run's end", lambda: release.run(victim)["status"] in ("SUCCESS", "FAILURE"))

    assert release.run(victim)["status"] == "SUCCESS", release.said(victim)


@pytest.mark.patient
def test_a_node_is_drained(release: Release, node: Cluster) -> None:
    with feeding(release):
        wait("a lane", lambda: lanes(release))
        try:
            # The one node keeps what serves: there is no other for it to go to.
            node.kubectl(
                "drain",
                NODE_NAME,
                "--pod-selector=dagster/run-id",
                "--force",
                "--delete-emptydir-data",
                "--timeout=300s",
            )
            assert not release.run_pods()
        finally:
            node.kubectl("uncordon", NODE_NAME)


@pytest.mark.patient
@pytest.mark.usefixtures("node")
def test_the_daemon_is_killed(release: Release) -> None:
    with feeding(release):
        assert kill("dagster-daemon", "run")
        wait("the daemon", lambda: release.ready("daemon"))


@pytest.mark.patient
def test_a_webserver_is_killed(release: Release) -> None:
    pods = [pod["status"]["podIP"] for pod in release.pods("app.kubernetes.io/component=webserver")]
    assert len(pods) == 2

    def answers(address: str) -> bool:
        with urllib.request.urlopen(f"{address}/server_info", timeout=5) as answer:
            return bool(answer.status == 200)

    with feeding(release):
        victim = release.pods("app.kubernetes.io/component=webserver")[0]
        other = next(ip for ip in pods if ip != victim["status"]["podIP"])
        release.kubectl("delete", "pod", victim["metadata"]["name"], "--grace-period=0", "--force")
        assert answers(f"http://{other}:3000")
        wait("the Service to answer", lambda: answers(release.url), 15)
        wait("two webservers", lambda: release.ready("webserver", 2))


@pytest.mark.patient
def test_a_code_location_that_crashes_leaves_the_others_working(release: Release) -> None:
    deployment = f"deployment/{NAME}-code-marts"
    broken = {"spec": {"strategy": {"type": "Recreate", "rollingUpdate": None}, "template": {"spec": {"containers": [
        {"name": "code", "command": ["sh", "-c", "echo broken >&2; exit 1"]}]}}}}  # fmt: skip
    try:
        release.kubectl("patch", deployment, "--patch", json.dumps(broken))
        wait("the crash", lambda: release.restarts("code-marts") > 1)
        with feeding(release):
            wait("a lane", lambda: lanes(release))
        assert not release.ready("code-marts")
    finally:
        release.kubectl("rollout", "undo", deployment)
        mended = {
            "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}}
        }
        release.kubectl("patch", deployment, "--patch", json.dumps(mended))
        wait("the code location", lambda: release.ready("code-marts"))


def test_a_run_that_takes_too_much_memory_is_named_as_such(release: Release) -> None:
    limits = {"container_config": {"resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}}}}

    run_id = release.launch("check_blocks", "ingestion", {"dagster-k8s/config": json.dumps(limits)})

    wait("the failure", lambda: release.run(run_id)["status"] == "FAILURE")
    assert "OOMKilled" in release.said(run_id)


@pytest.mark.patient
def test_a_run_whose_image_is_missing_fails_with_the_reason(release: Release, node: Cluster, image: str) -> None:
    with node.without(image):
        run_id = release.launch("build_views", "marts")
        wait("the failure", lambda: release.run(run_id)["status"] == "FAILURE")
        said = release.said(run_id)

    assert "ErrImageNeverPull" in said, said
    assert image in said, said


@pytest.mark.patient
def test_a_code_location_is_replaced_during_a_feed(release: Release) -> None:
    """A rolling upgrade fails no run."""
    before = failed(release)
    with feeding(release):
        for location in ("ingestion", "intelligence"):
            release.kubectl("rollout", "restart", f"deployment/{NAME}-code-{location}")
            release.kubectl("rollout", "status", f"deployment/{NAME}-code-{location}", "--timeout=300s")

    new = failed(release) - before
    assert not new, [release.said(run_id) for run_id in new]


@pytest.mark.patient
def test_the_api_is_away_for_a_minute(release: Release, node: Cluster) -> None:
    with feeding(release, SLOW):
        wait("a lane at work", lambda: at_work(release))
        try:
            node.stop("kube-apiserver")
            before, away = rows(release), time.monotonic()
            wait("rows while the API is away", lambda: rows(release) > before, API_AWAY_S)
            time.sleep(max(0.0, API_AWAY_S - (time.monotonic() - away)))
        finally:
            node.start("kube-apiserver")
            wait("the API", lambda: node.kubectl("get", "--raw", "/readyz"))
            # Who may do what is known some seconds after the API says that it is ready.
            account = f"--as=system:serviceaccount:{release.namespace}:{NAME}-daemon"
            wait("its rights", lambda: release.kubectl("auth", "can-i", "create", "jobs.batch", account))
        wait("the webserver", lambda: release.graphql("{ version }"))
