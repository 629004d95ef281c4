"""The chart as it is installed: helm, its objects, and Dagster behind its Service.

Belongs here: what tests ask an installation. Does not belong here: what must hold (`test_*.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers.base import http_json
from dash_pipeline.storage import s3
from tests.kubernetes.cluster import Cluster

CHART = Path(__file__).parents[2] / "deployments" / "kubernetes" / "chart"
NAME = "dash-pipeline"

_RUNS = """query($filter: RunsFilter, $limit: Int) { runsOrError(filter: $filter, limit: $limit) { ... on Runs {
  results { runId status jobName creationTime startTime endTime tags { key value } } } } }"""
_LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
_FAILURE = """query($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events {
  ... on MessageEvent { message eventType } } } } }"""


@dataclass(frozen=True)
class Release:
    """An installation in a namespace of its own."""

    cluster: Cluster
    namespace: str
    stores: Stack
    folder: Path

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """kubectl in the namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, text=text)

    def get(self, *arguments: str) -> Any:
        """Objects, as kubectl finds them."""
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def install(self, values: dict[str, Any], *more: str) -> None:
        """Install or upgrade; returns when everything is ready."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(values))
        try:
            self.cluster.helm(
                "upgrade", "--install", NAME, CHART, "--namespace", self.namespace, "--create-namespace",
                "--values", file, "--wait", "--timeout", "10m", *more,
            )  # fmt: skip
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from None

    def installed(self) -> bool:
        """Whether it is there, and not broken off."""
        listed = json.loads(self.cluster.helm("list", "--namespace", self.namespace, "--output", "json"))
        return any(one["name"] == NAME and one["status"] == "deployed" for one in listed)

    def state(self) -> str:
        """Pods and the newest events, for a person who looks for what went wrong."""
        return self.kubectl("get", "pods", "-o", "wide") + "\n".join(
            self.kubectl("get", "events", "--sort-by=.lastTimestamp").splitlines()[-30:]
        )

    @property
    def url(self) -> str:
        """The webserver's Service."""
        service = self.get("service", f"{NAME}-webserver")
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def graphql(self, query: str, **variables: object) -> Any:
        """The `data` of the webserver's answer."""
        answer = http_json(f"{self.url}/graphql", body={"query": query, "variables": variables}, timeout_s=30)
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def runs(self, job: str | None = None, limit: int = 500, **filters: object) -> list[dict[str, Any]]:
        """Runs, the newest first; their tags as a dict."""
        asked = {**({"pipelineName": job} if job else {}), **filters}
        found = self.graphql(_RUNS, filter=asked, limit=limit)["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run."""
        (found,) = self.runs(runIds=[run_id])
        return found

    def said(self, run_id: str) -> str:
        """All messages of a run's event log."""
        events = self.graphql(_FAILURE, id=run_id)["logsForRun"]["events"]
        return "\n".join(event.get("message") or "" for event in events)

    def launch(self, job: str, location: str, tags: dict[str, str] | None = None) -> str:
        """Start a run as a person does in the UI; its id."""
        selector = {
            "pipelineName": job,
            "repositoryLocationName": location,
            "repositoryName": "__repository__",
        }
        listed = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        asked = {"selector": selector, "runConfigData": {}, "mode": "default", "executionMetadata": {"tags": listed}}
        answer = self.graphql(_LAUNCH, params=asked)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def ready(self, component: str, replicas: int = 1) -> bool:
        """Whether so many pods of a component are ready."""
        statuses = [pod["status"] for pod in self.pods(f"app.kubernetes.io/component={component}")]
        conditions = [{one["type"]: one["status"] for one in status.get("conditions", [])} for status in statuses]
        return sum(one.get("Ready") == "True" for one in conditions) >= replicas

    def restarts(self, component: str) -> int:
        """How often a component's containers were started again."""
        statuses = [pod["status"] for pod in self.pods(f"app.kubernetes.io/component={component}")]
        return sum(one["restartCount"] for status in statuses for one in status.get("containerStatuses", []))

    def stores_bucket(self) -> s3.Bucket:
        """The bucket of the release's S3."""
        return s3.bucket(self.stores.settings())

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Pods by label."""
        found: list[dict[str, Any]] = self.get("pods", "-l", selector)["items"]
        return found

    def run_pods(self) -> list[dict[str, Any]]:
        """The pods of runs that are running."""
        return [pod for pod in self.pods("dagster/run-id") if pod["status"]["phase"] == "Running"]


def wait(what: str, done: Callable[[], Any], seconds: float = 300) -> Any:
    """Until `done` is true; returns what it returned. Fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := done():
                return found
            problem = ""
        except (AssertionError, OSError) as error:
            problem = f": {error}"
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}{problem}"
        time.sleep(0.3)
