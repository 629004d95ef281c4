"""Dagster's programs by the chart's commands and configuration, on the real database, without a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psycopg
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg.conninfo import conninfo_to_dict

from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from tests.kubernetes.conftest import Object, named, pods

_COUNT = "from dagster import DagsterInstance; print(DagsterInstance.get().get_runs_count())"


@pytest.fixture
def objects(render: Callable[..., list[Object]], fresh_database: Settings) -> list[Object]:
    """The chart's, with Dagster's storage in an empty database, and one code location."""
    dsn = conninfo_to_dict(fresh_database.timescale_dsn.get_secret_value())
    names = {"host": "host", "port": "port", "database": "dbname", "user": "user"}
    others = [f"--set=code.locations.{name}=null" for name in ("intelligence", "lifecycle", "marts")]
    return render(*(f"--set=dagster.postgres.{name}={dsn[key]}" for name, key in names.items()), *others)


def tables(settings: Settings) -> set[str]:
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        return {name for (name,) in conn.execute(query)}


def environment(config: Object, settings: Settings, home: Path) -> dict[str, str]:
    """As in a pod: this dagster.yaml is all that is in DAGSTER_HOME."""
    home.mkdir()
    (home / "dagster.yaml").write_text(config["data"]["dagster.yaml"])
    password = conninfo_to_dict(settings.timescale_dsn.get_secret_value())["password"]
    base = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return base | {"DAGSTER_HOME": str(home), "DAGSTER_PG_PASSWORD": str(password)}


def program(command: list[str]) -> list[str]:
    """The command with this Python's programs."""
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(program(command), env=env, capture_output=True, text=True, check=False, timeout=120)


def test_the_job_makes_the_tables_and_nobody_else(
    objects: list[Object], fresh_database: Settings, tmp_path: Path
) -> None:
    """A second time, as before an upgrade, it changes nothing."""
    prepare, instance = (named(objects, "ConfigMap", f"-{name}") for name in ("prepare", "instance"))
    early = run(["python", "-c", _COUNT], environment(instance, fresh_database, tmp_path / "early"))
    assert early.returncode != 0
    assert tables(fresh_database) == set()
    command = named(objects, "Job", "-prepare")["spec"]["template"]["spec"]["initContainers"][0]["command"]
    for turn in ("first", "second"):
        done = run(command, environment(prepare, fresh_database, tmp_path / turn))
        assert done.returncode == 0, done.stdout + done.stderr
    made = tables(fresh_database)
    assert {"runs", "event_logs", "daemon_heartbeats", "alembic_version"} <= made
    found = run(["python", "-c", _COUNT], environment(instance, fresh_database, tmp_path / "later"))
    assert found.stdout == "0\n", found.stderr
    assert tables(fresh_database) == made


@contextmanager
def running(command: list[str], env: dict[str, str], ready: Callable[[], object], log: Path) -> Iterator[None]:
    """The program, from when it is ready."""
    with log.open("w") as output, subprocess.Popen(program(command), env=env, stdout=output, stderr=output) as process:
        try:
            until = time.monotonic() + 90
            while True:
                try:
                    ready()
                    break
                except (grpc.RpcError, OSError):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.2)
            yield
        finally:
            process.kill()


@pytest.mark.patient
def test_code_location_and_webserver_start_and_find_each_other(
    stack: Stack, objects: list[Object], fresh_database: Settings, tmp_path: Path
) -> None:
    """By their probes and by `helm test`'s own question; neither asks for the cluster's API while it starts."""
    job = named(objects, "Job", "-prepare")["spec"]["template"]["spec"]["initContainers"][0]["command"]
    assert (
        run(job, environment(named(objects, "ConfigMap", "-prepare"), fresh_database, tmp_path / "job")).returncode == 0
    )
    grpc_port, http_port = stack.ports["code-ingestion"], stack.ports["webserver"]
    (code,), (webserver,) = (
        named(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        for name in ("-code-ingestion", "-webserver")
    )
    image = next(one["value"] for one in code["env"] if one["name"] == "DAGSTER_CONTAINER_IMAGE")
    env = environment(named(objects, "ConfigMap", "-instance"), fresh_database, tmp_path / "home")
    settings = named(objects, "ConfigMap", "-settings")["data"] | {
        "DASH_TIMESCALE_DSN": fresh_database.timescale_dsn.get_secret_value(),
        "DASH_STACK_DIR": str(tmp_path),
        "DAGSTER_CONTAINER_IMAGE": image,
    }
    workspace = yaml.safe_load(named(objects, "ConfigMap", "-workspace")["data"]["workspace.yaml"])
    workspace["load_from"][0]["grpc_server"] |= {"host": "127.0.0.1", "port": grpc_port}
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump(workspace))

    def served() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            request = health_pb2.HealthCheckRequest(service=code["readinessProbe"]["grpc"]["service"])
            assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=2).status == 1

    def answers() -> None:
        path = webserver["readinessProbe"]["httpGet"]["path"]
        assert urllib.request.urlopen(f"http://127.0.0.1:{http_port}{path}", timeout=5).status == 200

    here = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=4000": f"--port={grpc_port}"}
    serve = [here.get(word, word) for word in code["command"]]
    there = {
        "0.0.0.0": "127.0.0.1",
        "3000": str(http_port),
        "/opt/dagster/workspace/workspace.yaml": str(tmp_path / "workspace.yaml"),
    }
    show = [there.get(word, word) for word in webserver["command"]]
    question = pods(objects)["dash-dash-pipeline-test"]["spec"]["containers"][0]["command"]
    with (
        running(serve, env | settings, served, tmp_path / "code.log"),
        running(show, env, answers, tmp_path / "ui.log"),
    ):
        asked = run([*question[:-1], f"http://127.0.0.1:{http_port}/graphql"], env)
        assert (asked.returncode, asked.stdout) == (0, "ingestion RepositoryLocation\n"), asked.stderr
        from dagster._grpc.client import DagsterGrpcClient

        served_by = DagsterGrpcClient(host="127.0.0.1", port=grpc_port)
        assert f"--fixed-server-id={served_by.get_server_id()}" in code["command"]
    with pytest.raises(OSError, match="refused"):
        answers()
    failed = run([*question[:-1], f"http://127.0.0.1:{http_port}/graphql"], env)
    assert failed.returncode != 0
