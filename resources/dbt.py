"""dbt as assets see it, and the manifest that the asset graph is read from.

Belongs here: running dbt on the project in `dbt/`. Does not belong here: how its models become assets
(`assets/marts/`).

The manifest is made once for each state of the project and kept under the stack's folder: a code location must not
parse the project each time it loads. An image makes it while it is built: `python -m resources.dbt`. With words behind
it, it runs dbt's command: `python -m resources.dbt source freshness`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from dagster import ConfigurableResource

from dash_pipeline import children
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings, settings, stack_dir

PROJECT = Path(__file__).parents[1] / "dbt"
_EXECUTABLE = Path(sys.executable).with_name("dbt")
_PARSED = "partial_parse.msgpack"  # dbt's name for it
_ERRORS = "Errors parsed from dbt logs:"  # dagster-dbt's words
_PARTS = {".sql", ".yml", ".md", ".csv"}


class Result(NamedTuple):
    """A model or test that dbt is done with: `passed`, or a test that only warns; how long it took."""

    unique_id: str
    passed: bool
    warns: bool
    seconds: float
    message: str


class DbtResource(ConfigurableResource[Any]):
    """The project in `dbt/` on the database of `DASH_TIMESCALE_DSN`."""

    def build(self, models: Collection[str]) -> Iterator[Result]:
        """Build these models (names) and run their tests; each one that dbt came to, when it is done.

        Marts take the changed hours as their batch; a run with all of them that succeeds strikes these off the queue.
        Raises DashError with dbt's own words when something fails, others than what depends on it are done all the
        same; and when another run is building marts.
        """
        from dash_pipeline.storage import marts

        wanted = {node["name"]: node for node in load_manifest()["nodes"].values() if node["name"] in models}
        if not any(map(_is_mart, wanted.values())):
            yield from _run(sorted(wanted))
            return
        with marts.alone(settings()) as conn:
            anew = marts.built(conn) != project_version() or marts.lacks(conn, tables(load_manifest()))
            marts.take(settings(), conn, everything=anew)
            yield from _run(sorted(wanted))
            if wanted.keys() >= {node["name"] for node in load_manifest()["nodes"].values() if _is_mart(node)}:
                marts.done(conn, project_version())


def _run(models: Sequence[str]) -> Iterator[Result]:
    """`dbt build` of these models and of the tests that are about them alone."""
    from dagster_dbt import DbtCliResource
    from dagster_dbt.errors import DagsterDbtCliRuntimeError

    # The resource hands the process's environment on to dbt and takes no other.
    os.environ.update(profile(settings()))
    with tempfile.TemporaryDirectory() as target:
        dbt = DbtCliResource(project_dir=PROJECT, profiles_dir=PROJECT, dbt_executable=_program(Path(target)))
        # What dbt parsed last time, with this profile: it parses the whole project else, for seconds.
        parsed, kept = Path(target) / _PARSED, _home() / _PARSED
        if kept.exists():
            shutil.copy(kept, parsed)
        command = ["build", "--indirect-selection", "cautious", "--select", " ".join(models)]
        invocation = dbt.cli(command, manifest=load_manifest(), target_path=Path(target))
        try:
            for event in invocation.stream_raw_events():
                if event.is_result_event:
                    yield _result(event.raw_event["data"])
        except DagsterDbtCliRuntimeError as error:
            raise DashError(f"dbt build: {_said(str(error))}") from error
        if parsed.exists():
            with suppress(OSError):  # a home that cannot be written to costs time, no more
                _put(parsed, kept)


def _program(folder: Path) -> Path:
    """dbt as a run starts it. One that goes on when its run has been killed would write beside the next one; and
    dagster-dbt asks for the version each time, which dbt takes seconds to say."""
    program = folder / "dbt"
    said = f'[ "$1" = --version ] && exec echo {version("dbt-core")}'
    program.write_text(f'#!/bin/sh\n{said}\nexec {shlex.join(children.tied([str(_EXECUTABLE)]))} "$@"\n', "utf-8")
    program.chmod(0o700)
    return program


def _result(data: Mapping[str, Any]) -> Result:
    status = str(data["node_info"]["node_status"])
    failures = data.get("num_failures")
    return Result(
        data["node_info"]["unique_id"],
        status in ("success", "pass"),
        status == "warn",
        float(data.get("execution_time") or 0),
        f"{failures} rows" if failures else status,
    )


def _is_mart(node: Mapping[str, Any]) -> bool:
    return node["resource_type"] == "model" and "marts" in node["tags"]


def tables(manifest: Mapping[str, Any]) -> list[str]:
    """The relations that hold what they were told, and are not asked anew each time they are read."""
    return [
        f"{node['schema']}.{node['name']}"
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model" and node["config"]["materialized"] != "view"
    ]


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
    manifest: Mapping[str, Any] = _load("manifest.json")
    return manifest


@lru_cache(maxsize=1)
def load_lineage() -> Mapping[str, Mapping[str, list[tuple[str, str]]]]:
    """Unique id of each model -> column -> the columns it comes from, as (unique id, column)."""
    lineage: Mapping[str, Mapping[str, list[tuple[str, str]]]] = _load("lineage.json")
    return lineage


def _load(name: str) -> Any:
    path = _home() / name
    if not path.exists():
        _parse(path.parent)
    return json.loads(path.read_text(encoding="utf-8"))


def _home() -> Path:
    """Where what was made of this state of the project lies."""
    return stack_dir() / "dbt" / project_version()


def _parse(home: Path) -> None:
    """Write manifest and lineage; each whole or not at all, because other processes may be reading or writing it."""
    from resources.lineage import column_lineage

    for earlier in home.parent.glob("*"):
        if earlier != home:
            shutil.rmtree(earlier, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as target:
        done = subprocess.run(
            [_EXECUTABLE, "--quiet", "parse", *_places(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DashError(f"dbt parse of {PROJECT} failed: {(done.stdout + done.stderr).strip()}")
        manifest = Path(target) / "manifest.json"
        lineage = Path(target) / "lineage.json"
        found = column_lineage(PROJECT, json.loads(manifest.read_text(encoding="utf-8")))
        lineage.write_text(json.dumps(found), encoding="utf-8")
        os.replace(lineage, home / lineage.name)
        os.replace(manifest, home / manifest.name)


def _put(file: Path, place: Path) -> None:
    """Keep a file, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.copy(file, beside)
    os.replace(beside, place)


def _places(target: str) -> list[str]:
    project = str(PROJECT)
    return ["--project-dir", project, "--profiles-dir", project, "--target-path", target, "--log-path", target]


def command(words: Sequence[str]) -> int:
    """Run any command of dbt on the project, on the database of `DASH_TIMESCALE_DSN`; its exit code."""
    with tempfile.TemporaryDirectory() as target:
        environment = os.environ | profile(settings())
        return subprocess.run([_EXECUTABLE, *words, *_places(target)], env=environment, check=False).returncode


if __name__ == "__main__":
    load_manifest()
    sys.exit(command(sys.argv[1:]) if sys.argv[1:] else 0)
