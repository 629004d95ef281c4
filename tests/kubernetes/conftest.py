"""The chart, rendered by Helm.

Belongs here: fixtures of all tests of the deployment on Kubernetes. Does not belong here: a cluster's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deployments" / "kubernetes" / "chart"
#: The least that a cluster must say.
GIVEN = Path(__file__).parent / "values.yaml"
#: Whose objects the chart is rendered as; the oldest that it supports is in Chart.yaml.
KUBERNETES = "1.35.4"

Object = dict[str, Any]
Helm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm's command line: `helm("lint", CHART)`."""
    program = os.environ.get("DASH_HELM")
    if not program:
        pytest.skip("no Helm: set DASH_HELM to its program")
    return lambda *words: subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="session")
def render(helm: Helm) -> Callable[..., list[Object]]:
    """The objects of release `dash` in namespace `chain`: `render("--values", FILE, "--set", "a=b")`."""

    def objects(*words: object) -> list[Object]:
        done = helm(
            "template", "dash", CHART, "--namespace=chain", f"--kube-version={KUBERNETES}", f"--values={GIVEN}", *words
        )
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    return objects


@pytest.fixture(scope="session", params=["values.yaml", "values-small.yaml", "values-production.yaml"])
def rendered(render: Callable[..., list[Object]], request: pytest.FixtureRequest) -> list[Object]:
    """The objects, by each of the values that come with the chart."""
    return render(f"--values={CHART / request.param}", f"--values={GIVEN}")


@pytest.fixture(scope="session")
def default(render: Callable[..., list[Object]]) -> list[Object]:
    """The objects by the chart's own values."""
    return render()


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The object of this kind and name, behind the release's."""
    (found,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, f"dash-dash-pipeline{name}")]
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Name -> pod (metadata and spec) of everything that makes pods."""
    return {
        one["metadata"]["name"]: one if one["kind"] == "Pod" else one["spec"]["template"]
        for one in objects
        if one["kind"] in ("Deployment", "Job", "Pod")
    }
