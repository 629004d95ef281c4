"""Where an event's time went, from Kafka's append to the committed row.

Belongs here: percentiles by stage. Stages: ingestion (append to read), processing (read to the first statement),
output (statements to commit), end_to_end (append to commit). Milliseconds throughout.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dash_pipeline.metrics import BUCKETS_S, Histogram

PERCENTILES = (50, 95, 99)
_BUCKETS_MS = np.array(BUCKETS_S) * 1e3
STAGES = ("ingestion", "processing", "output", "end_to_end")


class Latency:
    """Collects the batches since the last `take`."""

    def __init__(self) -> None:
        self._batches: list[tuple[npt.NDArray[np.int64], float, float, float]] = []

    def add(self, appended: npt.NDArray[np.int64], consumed: float, decoded: float, committed: float) -> None:
        """A batch: `appended`, the append times of its messages, and when it was read, decoded and committed; all in
        milliseconds since 1970."""
        self._batches.append((appended, consumed, decoded, committed))

    def histograms(self) -> dict[str, Histogram]:
        """Stage -> how many messages since the last `take` took how long."""
        found = dict.fromkeys(STAGES, Histogram())
        for appended, consumed, decoded, committed in self._batches:
            # Two stages are the same for all messages of a batch.
            spans = {
                "ingestion": consumed - appended,
                "processing": np.full(1, decoded - consumed),
                "output": np.full(1, committed - decoded),
                "end_to_end": committed - appended,
            }
            for stage, values in spans.items():
                times = len(appended) // len(values)
                places = np.searchsorted(_BUCKETS_MS, values, side="left")
                counts = np.bincount(places, minlength=len(BUCKETS_S) + 1) * times
                found[stage] += Histogram(tuple(counts.tolist()), float(values.sum()) * times / 1e3)
        return found

    def take(self) -> dict[str, dict[str, float]]:
        """Stage -> {"p50", "p95", "p99"}, in ms, over all messages since the last call; empty when there were none."""
        batches, self._batches = self._batches, []
        if not batches:
            return {}
        counts = [len(appended) for appended, *_ in batches]
        appended = np.concatenate([batch[0] for batch in batches])
        consumed, decoded, committed = (np.repeat([batch[i] for batch in batches], counts) for i in (1, 2, 3))
        values = (consumed - appended, decoded - consumed, committed - decoded, committed - appended)
        return {
            stage: {f"p{q}": float(v) for q, v in zip(PERCENTILES, np.percentile(value, PERCENTILES), strict=True)}
            for stage, value in zip(STAGES, values, strict=True)
        }
