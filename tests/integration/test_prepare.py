"""`dash-pipeline prepare` on real servers that are empty, with nothing but the environment to go by."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from dash_pipeline.kafka import kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.secrets import read_env
from dash_pipeline.storage import search, timescale
from dash_pipeline.topics import chain_topics


@pytest.fixture
def chain(settings: Settings, unique: Callable[[str], str]) -> Iterator[str]:
    """A chain's name, whose topics go when the test ends."""
    name = unique("p")
    yield name
    with KafkaAdminClient(**kafka_python_options(settings)) as admin:
        admin.delete_topics([topic for topic in admin.list_topics() if topic.startswith(f"{name}.")])


def prepare(stack: Stack, tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder without `.stack`; all it knows is in its environment."""
    environment = read_env(stack.layout) | settings
    program = Path(sys.executable).with_name("dash-pipeline")
    base = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run([program, "prepare"], cwd=tmp_path, env=base | environment, capture_output=True, text=True)


def test_empty_servers_get_tables_topics_and_templates(
    stack: Stack, fresh_database: Settings, chain: str, tmp_path: Path
) -> None:
    """And a second time finds nothing to do."""
    registry = tmp_path / "chains.toml"
    registry.write_text(f'[{chain}]\ntitle = "Test"\nchain_id = 1\nblock_time_s = 1.0\n')
    given = {
        "DASH_CHAINS_FILE": str(registry),
        "DASH_TIMESCALE_DSN": fresh_database.timescale_dsn.get_secret_value(),
    }
    for _ in range(2):
        done = prepare(stack, tmp_path, **given)
        assert done.returncode == 0, done.stderr
        with timescale.connect(fresh_database) as conn:
            assert timescale.committed_offsets(conn) == {}
        with KafkaAdminClient(**kafka_python_options(fresh_database)) as admin:
            assert set(chain_topics(chain)) <= set(admin.list_topics())
        assert search.client(fresh_database).indices.get_index_template(name="*")["index_templates"]


def test_a_server_that_is_away_is_one_line(stack: Stack, settings: Settings, tmp_path: Path) -> None:
    done = prepare(stack, tmp_path, DASH_TIMESCALE_DSN="postgresql://dash:x@127.0.0.1:1/dash")
    assert done.returncode == 3
    assert "127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
