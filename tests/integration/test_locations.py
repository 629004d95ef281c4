"""Code locations as real servers: breaking one leaves the other working."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster._api.list_repositories import sync_list_repositories_grpc
from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
from dagster._grpc.client import DagsterGrpcClient

ROOT = Path(__file__).parents[2]
PARTS = ("dash_pipeline", "assets", "sensors", "resources", "dbt")
# Starting takes seconds; other tests may keep the machine busy.
START_S = 60.0


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code, to be broken."""
    folder = tmp_path_factory.mktemp("code")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def served(code: Path, location: str) -> Iterator[DagsterGrpcClient]:
    """`dagster api grpc` of one location, with settings under which nothing can be reached."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DASH_")} | {
        "PYTHONPATH": str(code),
        "DASH_STACK_DIR": str(code / "stack"),
        "DASH_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "DASH_TIMESCALE_DSN": "postgresql://dash:secret@127.0.0.1:1/dash",
        "DASH_OPENSEARCH_URL": "http://127.0.0.1:1",
    }
    module = f"dash_pipeline.locations.{location}"
    command = [sys.executable, "-m", "dagster", "api", "grpc", "-m", module, "--lazy-load-user-code"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], cwd=code, env=environment)
    try:
        client = DagsterGrpcClient(port=port, host="127.0.0.1")
        deadline = time.monotonic() + START_S
        while True:
            try:
                client.ping("")
                break
            except DagsterUserCodeUnreachableError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        yield client
    finally:
        process.kill()  # it has nothing to save, and can survive SIGTERM
        process.wait()


def loads(code: Path, location: str) -> bool:
    """Whether the location's definitions are served; what is wrong with them otherwise is printed."""
    with served(code, location) as client:
        try:
            answer = sync_list_repositories_grpc(client)
        except DagsterUserCodeProcessError as error:
            print(error)
            return False
        return [symbol.attribute for symbol in answer.repository_symbols] == ["defs"]


@pytest.mark.parametrize("location", ["ingestion", "intelligence", "lifecycle", "marts"])
def test_a_whole_copy_serves_it(copy: Path, location: str) -> None:
    assert loads(copy, location)


@pytest.mark.parametrize(
    ("broken", "location", "other"),
    [
        ("assets/ingestion/ingest.py", "ingestion", "marts"),
        ("assets/marts/views.py", "marts", "intelligence"),
        ("assets/intelligence/engine.py", "intelligence", "ingestion"),
    ],
)
def test_what_breaks_one_location_leaves_the_other(copy: Path, broken: str, location: str, other: str) -> None:
    file = copy / broken
    whole = file.read_text()
    file.write_text('raise RuntimeError("broken on purpose")\n')
    try:
        assert not loads(copy, location)
        assert loads(copy, other)
    finally:
        file.write_text(whole)
