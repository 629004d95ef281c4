"""Dagster's tables on the real database, by the Job's own command and configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from dash_pipeline.settings import Settings
from tests.kubernetes.conftest import Object, named

_COUNT = "from dagster import DagsterInstance; print(DagsterInstance.get().get_runs_count())"


@pytest.fixture
def objects(render: Callable[..., list[Object]], fresh_database: Settings) -> list[Object]:
    """The chart's, with Dagster's storage in an empty database."""
    dsn = conninfo_to_dict(fresh_database.timescale_dsn.get_secret_value())
    names = {"host": "host", "port": "port", "database": "dbname", "user": "user"}
    return render(*(f"--set=dagster.postgres.{name}={dsn[key]}" for name, key in names.items()))


def tables(settings: Settings) -> set[str]:
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        return {name for (name,) in conn.execute(query)}


def run(command: list[str], config: Object, settings: Settings, home: Path) -> subprocess.CompletedProcess[str]:
    """The command as in a pod: this dagster.yaml is all that is in DAGSTER_HOME."""
    home.mkdir()
    (home / "dagster.yaml").write_text(config["data"]["dagster.yaml"])
    password = conninfo_to_dict(settings.timescale_dsn.get_secret_value())["password"]
    program = Path(sys.executable).with_name(command[0])
    environment = {"PATH": os.environ["PATH"], "DAGSTER_HOME": str(home), "DAGSTER_PG_PASSWORD": str(password)}
    return subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True, check=False)


def test_the_job_makes_the_tables_and_nobody_else(
    objects: list[Object], fresh_database: Settings, tmp_path: Path
) -> None:
    """A second time, as before an upgrade, it changes nothing."""
    prepare, instance = (named(objects, "ConfigMap", f"-{name}") for name in ("prepare", "instance"))
    early = run(["python", "-c", _COUNT], instance, fresh_database, tmp_path / "early")
    assert early.returncode != 0
    assert tables(fresh_database) == set()
    command = named(objects, "Job", "-prepare")["spec"]["template"]["spec"]["initContainers"][0]["command"]
    for turn in ("first", "second"):
        done = run(command, prepare, fresh_database, tmp_path / turn)
        assert done.returncode == 0, done.stdout + done.stderr
    made = tables(fresh_database)
    assert {"runs", "event_logs", "daemon_heartbeats", "alembic_version"} <= made
    found = run(["python", "-c", _COUNT], instance, fresh_database, tmp_path / "later")
    assert found.stdout == "0\n", found.stderr
    assert tables(fresh_database) == made
