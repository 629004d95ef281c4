"""dbt as assets see it, and the manifest that the asset graph is read from.

Belongs here: running dbt on the project in `dbt/`. Does not belong here: how its models become assets
(`assets/marts/`).

The manifest is made once for each state of the project and kept under the stack's folder: a code location must not
parse the project each time it loads. An image makes it while it is built: `python -m resources.dbt`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dagster import AssetMaterialization, ConfigurableResource

from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings, settings, stack_dir

PROJECT = Path(__file__).parents[1] / "dbt"
_EXECUTABLE = Path(sys.executable).with_name("dbt")
_ERRORS = "Errors parsed from dbt logs:"  # dagster-dbt's words
_PARTS = {".sql", ".yml", ".md", ".csv"}


class DbtResource(ConfigurableResource[Any]):
    """The project in `dbt/` on the database of `DASH_TIMESCALE_DSN`."""

    def run(self, models: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Build these models; yields each one's unique id and metadata when it is built.

        Raises DashError with dbt's own words when one fails; the others are built all the same.
        """
        from dagster_dbt import DbtCliResource
        from dagster_dbt.errors import DagsterDbtCliRuntimeError

        # The resource hands the process's environment on to dbt and takes no other.
        os.environ.update(profile(settings()))
        dbt = DbtCliResource(project_dir=PROJECT, profiles_dir=PROJECT, dbt_executable=_EXECUTABLE)
        with tempfile.TemporaryDirectory() as target:
            invocation = dbt.cli(
                ["run", "--select", " ".join(models)], manifest=load_manifest(), target_path=Path(target)
            )
            try:
                for event in invocation.stream():
                    if isinstance(event, AssetMaterialization):
                        yield str(event.metadata["unique_id"].value), event.metadata
            except DagsterDbtCliRuntimeError as error:
                raise DashError(f"dbt run: {_said(str(error))}") from error


def _said(message: str) -> str:
    """What dbt said, in one line, without the command line and the hints that dagster-dbt puts before it."""
    return " ".join((message.rpartition(_ERRORS)[2] or message).split())


def profile(values: Settings) -> dict[str, str]:
    """The environment that `dbt/profiles.yml` reads."""
    from psycopg.conninfo import conninfo_to_dict

    dsn = conninfo_to_dict(values.timescale_dsn.get_secret_value())
    names = {
        "host": "DASH_DBT_HOST",
        "port": "DASH_DBT_PORT",
        "dbname": "DASH_DBT_DATABASE",
        "user": "DASH_DBT_USER",
        "password": "DBT_ENV_SECRET_DASH_PASSWORD",
        "sslmode": "DASH_DBT_SSLMODE",
    }
    return {variable: str(dsn[name]) for name, variable in names.items() if name in dsn}


@lru_cache(maxsize=1)
def project_version() -> str:
    """A hash of the project's files: the same text, the same manifest and views."""
    digest = hashlib.sha256()
    for path in sorted(PROJECT.rglob("*")):
        if path.suffix in _PARTS:
            digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def load_manifest() -> Mapping[str, Any]:
    """dbt's manifest of the project, parsed now if this state of the project never was."""
    path = stack_dir() / "dbt" / project_version() / "manifest.json"
    if not path.exists():
        _parse(path)
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _parse(path: Path) -> None:
    """Write the manifest; whole or not at all, because other processes may be reading or writing it."""
    shutil.rmtree(path.parent.parent, ignore_errors=True)  # manifests of earlier states
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as target:
        places: list[str | Path] = [
            "--project-dir",
            PROJECT,
            "--profiles-dir",
            PROJECT,
            "--target-path",
            target,
            "--log-path",
            target,
        ]
        done = subprocess.run(
            [_EXECUTABLE, "--quiet", "parse", *places],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DashError(f"dbt parse of {PROJECT} failed: {(done.stdout + done.stderr).strip()}")
        os.replace(Path(target) / "manifest.json", path)


if __name__ == "__main__":
    load_manifest()
