"""What `status` prints, and its JSON."""

from __future__ import annotations

import io
import json

from rich.console import Console

from dash_pipeline.stack.report import as_json, show
from dash_pipeline.stack.servers.dagster import CodeLocation
from dash_pipeline.stack.status import Lane, PartitionLag, ServerStatus, Status, TopicLag

STATUS = Status(
    servers=[
        ServerStatus("kafka", "ready", 7, 3 << 20, "127.0.0.1:19092"),
        ServerStatus("s3", "not ready", 8, 2 << 20, "http://127.0.0.1:18333", "connection refused"),
    ],
    locations=[CodeLocation("marts", False, "ImportError: x")],
    topics=[
        TopicLag("anvil.logs", 2, [PartitionLag(0, 12, 10, 2), PartitionLag(1, 5, 5, 0)]),
        TopicLag("bsc.logs", 0, [PartitionLag(0, 0, 0, 0)]),
    ],
    lanes=[Lane("anvil/0", "run-1", "ingest", "STARTED", None)],
    problems=["lag: timescale not ready"],
)


def printed(status: Status) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(status, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_part_is_shown() -> None:
    text = printed(STATUS)

    for part in ("127.0.0.1:19092", "connection refused", "5 MiB", "ImportError: x", "anvil/0", "lag: timescale not"):
        assert part in text
    assert "10/12  5/5" in text


def test_topics_nothing_was_published_to_are_left_out() -> None:
    assert "bsc.logs" not in printed(STATUS)


def test_json_has_everything() -> None:
    report = json.loads(as_json(STATUS))

    assert report["memory_bytes"] == 5 << 20
    assert report["topics"][0]["partitions"][0] == {"partition": 0, "end": 12, "next": 10, "lag": 2}
    assert [topic["topic"] for topic in report["topics"]] == ["anvil.logs", "bsc.logs"]
