"""`make demo LIVE=1`, on the test stack: blocks are mined, exported and ingested as they come, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dash_pipeline.demo import LIVE_CHAIN
from dash_pipeline.stack import Stack
from dash_pipeline.storage.timescale import connect, forget_chain

BLOCKS = 8
PATIENCE_S = 180


@pytest.mark.patient
def test_a_market_that_is_mined_now(platform: Stack, tmp_path: Path) -> None:
    place = {
        "DASH_STACK_DIR": str(platform.layout.home),
        "DASH_OPT_DIR": str(platform.layout.opt),
        "DASH_PORT_OFFSET": str(platform.ports.offset),
    }
    log = tmp_path / "log"
    with connect(platform.settings()) as conn, log.open("wb") as stderr:
        forget_chain(conn, LIVE_CHAIN)  # what other tests left of it would be counted
        with subprocess.Popen(
            [Path(sys.executable).with_name("dash-pipeline"), "demo", "--live"],
            env=os.environ | place,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as demo:
            try:
                deadline = time.monotonic() + PATIENCE_S
                while True:
                    count = "SELECT count(*) FROM chain.{} WHERE chain = %s"
                    blocks, swaps = (
                        conn.execute(count.format(t), (LIVE_CHAIN,)).fetchone() for t in ("blocks", "pool_events")
                    )
                    if blocks and swaps and blocks[0] >= BLOCKS and swaps[0]:
                        break
                    assert demo.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, f"{blocks} blocks, {swaps} pool events: {log.read_text()}"
                    time.sleep(0.2)
                demo.send_signal(signal.SIGINT)
                said, _ = demo.communicate(timeout=PATIENCE_S)
            finally:
                demo.kill()
    assert demo.returncode == 0, log.read_text()
    assert "blocks" in said
