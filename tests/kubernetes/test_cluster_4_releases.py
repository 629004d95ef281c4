"""Upgrading, going back and taking away."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dash_pipeline.stack import Stack
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import values
from tests.kubernetes.release import NAME, Release, wait

#: What Kubernetes itself puts into each namespace.
_ALWAYS = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
_KINDS = (
    "pods,jobs,deployments,replicasets,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,"
    "poddisruptionbudgets,horizontalpodautoscalers,ingresses"
)


@pytest.fixture(scope="module")
def installed(cluster: Cluster, stores: Stack, image: str) -> dict[str, Any]:
    return values(cluster, stores, image)


def settings_of(release: Release) -> dict[str, str]:
    found: dict[str, str] = release.get("configmap", f"{NAME}-settings")["data"]
    return found


@pytest.mark.patient
def test_an_upgrade_and_back(release: Release, installed: dict[str, Any]) -> None:
    changed = copy.deepcopy(installed)
    changed["settings"]["lag_per_lane"] = 2_000

    release.install(changed)
    after = settings_of(release)["DASH_LAG_PER_LANE"]
    release.cluster.helm("rollback", NAME, "--namespace", release.namespace, "--wait", "--timeout", "10m")
    back = settings_of(release)["DASH_LAG_PER_LANE"]

    assert (after, back) == ("2000", "1000")
    wait("the webserver", lambda: release.graphql("{ version }"))


@pytest.mark.patient
def test_an_upgrade_that_cannot_start_leaves_what_is_there_working(release: Release, installed: dict[str, Any]) -> None:
    broken = copy.deepcopy(installed)
    broken["code"] = {"locations": {"ingestion": {"image": {"tag": "absent"}}}}

    with pytest.raises(AssertionError):
        release.install(broken, "--timeout", "20s")
    assert release.ready("code-ingestion")
    assert release.graphql("{ version }")

    release.cluster.helm("rollback", NAME, "--namespace", release.namespace, "--wait", "--timeout", "10m")


def test_nothing_is_left_behind(release: Release) -> None:
    release.cluster.helm("uninstall", NAME, "--namespace", release.namespace, "--wait", "--timeout", "5m")

    def left() -> set[str]:
        names = release.kubectl("get", _KINDS, "-o", "name").split()
        return {name.replace(".apps", "").replace(".batch", "") for name in names} - _ALWAYS

    wait("everything to go", lambda: not left())
