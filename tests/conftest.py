"""What every kind of test may use: the test stack's place. Nothing starts until a fixture is asked for.

Belongs here: fixtures for several folders of tests. Does not belong here: fixtures of one folder.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from rich.console import Console

from dash_pipeline.kafka import kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.progress import Lines
from dash_pipeline.storage.search import indexes
from dash_pipeline.storage.search.bulk import client

ROOT = Path(__file__).parents[1]
_PROCESSORS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is `patient` where servers and tests have few processors: `make test` has an hour."""
    if (os.cpu_count() or 1) >= _PROCESSORS or os.environ.get("DASH_ALL_TESTS"):
        return
    for item in items:
        if item.get_closest_marker("patient"):
            reason = f"NOT RUN: less than {_PROCESSORS} processors; `make test-all` does it here, too"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka, TimescaleDB, OpenSearch and S3 with no data, on ports and in a folder of their own.

    DASH_TEST_STACK_DIR and DASH_TEST_PORT_OFFSET move it, so that two test runs do not meet.
    DASH_TEST_KEEP=1 uses the servers that are up, with their data, and leaves them up.
    """
    home = Path(os.environ.get("DASH_TEST_STACK_DIR") or ROOT / ".stack" / "test")
    offset = int(os.environ.get("DASH_TEST_PORT_OFFSET") or 1000)
    stack = Stack.at(home, offset, opt=Path(os.environ.get("DASH_OPT_DIR") or ROOT / ".stack" / "opt"))
    keep = os.environ.get("DASH_TEST_KEEP") == "1"
    if not keep:
        stack.reset(everything=True)  # the settings, too, that a run before wrote: where its receivers listened
    try:
        stack.up(only=["stores"], progress=Lines(Console(stderr=True)), content=False)
        yield stack
    finally:
        if not keep:
            stack.down()


@pytest.fixture(scope="session")
def settings(stack: Stack) -> Settings:
    """How to reach the test stack."""
    return stack.settings()


@pytest.fixture(scope="module")
def database(stack: Stack, names: set[str]) -> Iterator[Settings]:
    """Settings with a database of this module's own: empty, with the extension. Topics and indexes that the module has
    made go with it."""
    with stack.scratch_database() as settings:
        yield settings
        _sweep(settings, names)


@pytest.fixture
def fresh_database(stack: Stack) -> Iterator[Settings]:
    """Settings with a database of this test's own: empty, with the extension."""
    with stack.scratch_database() as settings:
        yield settings


@pytest.fixture(scope="session")
def names() -> set[str]:
    """What `unique` has given away, and nobody has swept."""
    return set()


@pytest.fixture(scope="session")
def unique(names: set[str]) -> Callable[[str], str]:
    """A name nobody else uses, for topics, chains and indexes: `unique("t")` -> `t5f0c9a1e`."""

    def name(prefix: str) -> str:
        made = f"{prefix}{secrets.token_hex(4)}"
        names.add(made)
        return made

    return name


def _sweep(settings: Settings, names: set[str]) -> None:
    """Delete the topics and indexes of these chains: a server that is killed has to recover whatever it holds."""
    with KafkaAdminClient(**kafka_python_options(settings)) as admin:
        if topics := [topic for topic in admin.list_topics() if topic.partition(".")[0] in names]:
            admin.delete_topics(topics)
    for name in names:
        indexes.delete(client(settings), name)
    names.clear()


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that takes alerts of failed runs: its address, and what it was sent."""
    messages: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", messages
    server.shutdown()
    server.server_close()
