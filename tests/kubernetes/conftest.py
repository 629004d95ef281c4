"""The chart, rendered by Helm; the platform on a cluster: the local one, its servers beside it, the chart installed.

Belongs here: what every test of this folder stands on. Does not belong here: the cluster's programs (`cluster.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from dash_pipeline import topics
from dash_pipeline.errors import DashError
from dash_pipeline.stack import Stack
from dash_pipeline.stack.layout import Layout, Ports
from dash_pipeline.stack.servers import SERVERS
from tests.kubernetes import image as images
from tests.kubernetes.cluster import (
    BEFORE_PODS,
    MACHINE,
    NODE,
    VERSION,
    Cluster,
    Given,
    alone,
    before_pods,
    build_programs,
    not_built,
    program,
    why_not,
)
from tests.kubernetes.cluster import NAMESPACE as NETWORK
from tests.kubernetes.market import CHAIN
from tests.kubernetes.release import CHART, Release

ROOT = Path(__file__).parents[2]
#: Partitions of each topic of the chain that tests feed.
PARTITIONS = 8
_STORES = ("kafka", "timescale", "opensearch", "s3")
# As for the other stacks: DASH_TEST_KEEP=1 uses what is up, with its data, and leaves it up.
_KEEP = os.environ.get("DASH_TEST_KEEP") == "1"

#: The least that a cluster must say.
GIVEN = Path(__file__).parent / "values.yaml"
#: Whose objects the chart is rendered as; the oldest that it supports is in Chart.yaml.
KUBERNETES = VERSION

Object = dict[str, Any]
Helm = Callable[..., "subprocess.CompletedProcess[str]"]


_BUILD = pytest.StashKey["subprocess.Popen[bytes]"]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the cluster's programs and the image beside the tests that come before: it takes minutes."""
    wanted = any("cluster" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not (Given.from_environment() or why_not()):
        build = "from tests.kubernetes import cluster, image; cluster.build_programs(); image.build()"
        session.stash[_BUILD] = subprocess.Popen(
            [ROOT / "deployments" / "local" / "beside.sh", sys.executable, "-c", build],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # whoever needs a thing makes what is missing, and says why it fails
            start_new_session=True,
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End what a run that was broken off is still building."""
    build = session.stash.get(_BUILD, None)
    if build is not None and build.poll() is None:
        os.killpg(build.pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm's command line: `helm("lint", CHART)`."""
    if reason := not_built():
        _not_run(reason)
    try:
        path = program("helm")
    except DashError as error:
        _not_run(f"helm cannot be built here: {error}")
    return lambda *words: subprocess.run(
        [path, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
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


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster: the one that the environment gives, else one of this machine."""
    home = ROOT / ".stack" / "kubernetes"
    if given := Given.from_environment():
        yield Cluster(home, given)
        return
    cluster = Cluster(home)
    if _KEEP and cluster.kubeconfig.exists():
        yield cluster
        return
    if reason := why_not():
        _not_run(reason)
    with alone(home):
        try:
            try:
                build_programs()
                images.make_base()
                cluster.up()
            except (DashError, AssertionError, subprocess.CalledProcessError) as error:
                # Whatever it is that this machine lacks: what is tested has not begun.
                _not_run(f"no cluster can be built or started here: {error}")
            yield cluster
        finally:
            if not _KEEP:
                cluster.down()


def _not_run(reason: str) -> NoReturn:
    warnings.warn(f"the tests on a cluster are NOT RUN: {reason}", stacklevel=2)
    pytest.skip(f"NOT RUN: {reason}")


@pytest.fixture
def node(cluster: Cluster) -> Cluster:
    """The cluster of this machine, whose node a test may do anything to."""
    if cluster.given:
        pytest.skip("NOT RUN: it does something to the node, and the cluster is somebody's")
    return cluster


@pytest.fixture(scope="session")
def stores(cluster: Cluster) -> Iterator[Stack]:
    """Kafka, TimescaleDB, OpenSearch and S3 where the cluster's pods reach them."""
    home, opt = ROOT / ".stack" / "kubernetes-stores", Path(os.environ.get("DASH_OPT_DIR") or ROOT / ".stack" / "opt")
    host = cluster.given.host if cluster.given else NODE
    environment = {**os.environ, "DASH_STACK_DIR": str(home), "DASH_OPT_DIR": str(opt), "DASH_STACK_HOST": host}
    environment.pop("DASH_PORT_OFFSET", None)
    inside = [] if cluster.given else ["nsenter", f"--net=/run/netns/{NETWORK}", "--", "nice", f"-n{BEFORE_PODS}"]
    stack = Stack(Layout.at(home, opt), Ports(host=host))
    if _KEEP and stack.supervisor.running():
        yield stack
        return
    stack.reset(everything=True)
    for name in _STORES:
        # Here, because nothing can be fetched from inside the cluster's network.
        SERVERS[name].prepare(stack.place, lambda text: None)
    try:
        # Their content is for the release to make.
        up = f"from dash_pipeline.stack import Stack; Stack.at().up({_STORES}, content=False)"
        subprocess.run([*inside, sys.executable, "-c", up], env=environment, check=True)
        if not cluster.given:
            before_pods(stack.pid("kafka"))
        topics.ensure(stack.settings(), [CHAIN], partitions=PARTITIONS)
        yield stack
    finally:
        if not _KEEP:
            stack.down()


@pytest.fixture(scope="session")
def image(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """The project's image, where the cluster finds it; its name."""
    if cluster.given:
        return cluster.given.image
    if not (_KEEP and cluster.has(images.NAME)):
        build = request.session.stash.get(_BUILD, None)
        if build is None or build.wait() != 0:
            images.build()
        cluster.load(images.archived())
    return images.NAME


@pytest.fixture(scope="session")
def release(cluster: Cluster, stores: Stack, image: str, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The chart, installed; everything it starts is ready."""
    release = Release(cluster, "dash", stores, tmp_path_factory.mktemp("release"))
    if not (_KEEP and release.installed()):
        release.install(values(cluster, stores, image))
    return release


def values(cluster: Cluster, stores: Stack, image: str) -> dict[str, Any]:
    """The chart's values for this cluster and these servers."""
    settings = stores.settings()
    name, _, tag = image.rpartition(":")
    host, ports = stores.ports.host, [stores.ports[store] for store in _STORES]
    here = [{"ipBlock": {"cidr": f"{host}/32"}}]
    policy: dict[str, Any] = {"data": [{"to": here, "ports": ports}]}
    if not cluster.given:
        policy |= {"dns": here, "api": {"to": here}, "ui": [{"ipBlock": {"cidr": f"{MACHINE}/32"}}]}
    plain = (
        "kafka_bootstrap", "kafka_security_protocol", "kafka_sasl_mechanism", "kafka_username", "opensearch_url",
        "opensearch_username", "s3_endpoint", "s3_region", "s3_bucket",
    )  # fmt: skip
    secret = ("kafka_password", "timescale_dsn", "backup_dsn", "opensearch_password", "s3_secret_key", "alert_secret")
    secrets = {f"DASH_{name.upper()}": getattr(settings, name).get_secret_value() for name in secret}
    secrets |= {
        "DASH_ENCRYPTION_KEYS": json.dumps(settings.encryption_keys),
        "DASH_S3_ACCESS_KEY": str(settings.s3_access_key),
        "DAGSTER_PG_PASSWORD": stores.place.secrets.timescale_dagster,
    }
    return {
        "image": {"repository": name, "tag": tag, "pullPolicy": "IfNotPresent" if cluster.given else "Never"},
        "settings": {
            **{name: getattr(settings, name) for name in plain},
            "max_lanes": 4,
            "lag_per_lane": 1_000,
            "scale_up_cooldown_s": 10,
            "scale_down_after_s": 30,
            "idle_timeout_s": 10,
            # The marts are built once; a run every minute would take the processors that the lanes under test need.
            "marts_every_s": 1_800,
        },
        # One small node: several lanes, those that they take over from and the prediction engine must fit on it.
        "runs": {
            # As long as the local stack gives a run: a burst starts several at once on what may be a slow machine.
            "startTimeoutSeconds": 90,
            "resources": _resources("2Gi"),
            "sizes": [
                {"name": "small", "lag": 0, "config": {"container_config": {"resources": _resources("1Gi")}}},
                {"name": "large", "lag": 20_000, "config": {"container_config": {"resources": _resources("2Gi")}}},
            ],
        },
        "secrets": secrets,
        "dagster": {"postgres": {"host": host, "port": stores.ports["timescale"]}},
        "networkPolicy": policy,
    }


def _resources(memory: str) -> dict[str, dict[str, str]]:
    return {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": memory}}
