"""Percentiles by stage, over messages and not over batches."""

from __future__ import annotations

import numpy as np
import pytest

from dash_pipeline.microbatch.latency import PERCENTILES, STAGES, Latency


def test_stages_add_up_and_taking_empties() -> None:
    latency = Latency()
    latency.add(np.array([1000, 1010]), 1030.0, 1035.0, 1050.0)
    taken = latency.take()
    assert list(taken) == list(STAGES)
    assert taken["ingestion"]["p50"] == 25.0
    assert taken["processing"] == {"p50": 5.0, "p95": 5.0, "p99": 5.0}
    assert taken["output"]["p99"] == 15.0
    assert taken["end_to_end"]["p50"] == 45.0
    assert latency.take() == {}


def test_a_large_batch_counts_as_many() -> None:
    latency = Latency()
    latency.add(np.zeros(990, np.int64), 1.0, 2.0, 10.0)
    latency.add(np.zeros(10, np.int64), 500.0, 501.0, 1000.0)
    end = latency.take()["end_to_end"]
    assert end["p50"] == end["p95"] == 10.0
    assert 10.0 < end["p99"] <= 1000.0


def test_against_numpy() -> None:
    rng = np.random.default_rng(7)
    latency, every = Latency(), []
    for _ in range(20):
        appended = rng.integers(0, 1000, rng.integers(1, 50))
        committed = 1000 + float(rng.integers(0, 500))
        latency.add(appended, 1000.0, 1001.0, committed)
        every.append(committed - appended)
    want = np.percentile(np.concatenate(every), PERCENTILES)
    assert list(latency.take()["end_to_end"].values()) == pytest.approx(list(want))
