"""The generator on a real node: the same seed makes the same market, and the live market ends when it is told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dash_pipeline import market
from dash_pipeline.errors import Unavailable
from dash_pipeline.feed.node import head_of

OPTIONS = ["--pools", "11", "--blocks", "60", "--start", "1717200000"]


@pytest.fixture(scope="module")
def home() -> Path:
    return market.install(market.market_home())


def make(home: Path, seed: int) -> dict[str, Any]:
    with market.anvil(home, market.free_port(), "--timestamp", "1717200000") as url:
        command = market.generator(home, url, [*OPTIONS, "--seed", str(seed)])
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    labels: dict[str, Any] = json.loads(done.stdout)
    return labels


def test_the_same_seed_makes_the_same_market(home: Path) -> None:
    first = make(home, 3)
    assert first["blocks"] == 61
    assert first["txs"] > 100
    assert all(label["status"] == 1 for label in first["labels"])
    assert make(home, 3) == first
    other = make(home, 4)
    assert other["labels"] != first["labels"]
    assert other["weth"] == first["weth"]


def test_a_live_market_ends_when_told_to() -> None:
    port = market.free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "dash_pipeline.market", "live", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while height(url) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert height(url) == -1


def height(url: str) -> int:
    """-1 when there is no node."""
    try:
        return head_of(url)
    except Unavailable:
        return -1
