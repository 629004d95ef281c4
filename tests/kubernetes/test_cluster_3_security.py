"""Who may do what on the cluster, and who reaches whom."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.kubernetes.release import NAME, Release, wait

pytestmark = pytest.mark.usefixtures("release")

# A policy is in force a moment after the pod is there.
_CONNECT = """
import socket, sys, time
time.sleep(10)
socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
print("reached")
"""
_OURS = {"app.kubernetes.io/name": "dash-pipeline", "app.kubernetes.io/instance": NAME}


def test_accounts_may_do_what_they_need_and_nothing_else(release: Release) -> None:
    with (Path(__file__).parent / "rights.csv").open() as file:
        rights = list(csv.DictReader(file))
    wrong = []
    for right in rights:
        account = f"system:serviceaccount:{release.namespace}:{NAME}-{right['account']}"
        resource, _, sub = right["resource"].partition("/")
        asked = [right["verb"], resource, *([f"--subresource={sub}"] if sub else [])]
        said = release.cluster.kubectl(
            "-n", release.namespace, "auth", "can-i", *asked, f"--as={account}", check=False
        ).split()
        if right["allowed"] not in said:
            wrong.append((right, said))

    assert not wrong
    assert {right["allowed"] for right in rights} == {"yes", "no"}


@pytest.mark.usefixtures("node")  # others may have a network that enforces no policies
@pytest.mark.parametrize(("labels", "reached"), [({}, False), (_OURS | {"app.kubernetes.io/component": "run"}, True)])
def test_only_our_pods_reach_the_database(release: Release, image: str, labels: dict[str, str], reached: bool) -> None:
    name = f"probe-{'ours' if labels else 'stranger'}"
    container = {
        "name": "probe",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", _CONNECT, release.stores.ports.host, str(release.stores.ports["timescale"])],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]},
    }
    try:
        release.kubectl("apply", "-f", "-", text=json.dumps(pod))
        phase = wait(
            "the probe's end",
            lambda: (
                release.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed")
                and release.get("pod", name)["status"]["phase"]
            ),
            60,
        )
        said = release.kubectl("logs", name)
    finally:
        release.kubectl("delete", "pod", name, "--grace-period=0", "--force")

    assert (phase == "Succeeded") == reached, said
    assert ("reached" if reached else "Error") in said


def test_every_pod_is_confined(release: Release) -> None:
    for pod in release.get("pods")["items"]:
        name, spec = pod["metadata"]["name"], pod["spec"]
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert not context["allowPrivilegeEscalation"], name
            assert context["capabilities"]["drop"] == ["ALL"], name
