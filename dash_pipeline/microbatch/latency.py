"""Where an event's time went, from Kafka's append to the committed row.

Belongs here: percentiles by stage. Stages: ingestion (append to read), processing (read to the first statement),
output (statements to commit), end_to_end (append to commit). Milliseconds throughout.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 95, 99)
STAGES = ("ingestion", "processing", "output", "end_to_end")


class Latency:
    """Collects the batches since the last `take`."""

    def __init__(self) -> None:
        self._batches: list[tuple[npt.NDArray[np.int64], float, float, float]] = []

    def add(self, appended: npt.NDArray[np.int64], consumed: float, decoded: float, committed: float) -> None:
        """A batch: append times of its messages and when it was read, decoded and committed, all epoch ms."""
        self._batches.append((appended, consumed, decoded, committed))

    def take(self) -> dict[str, dict[str, float]]:
        """Stage -> {"p50", "p95", "p99"} over all messages since the last call; empty when there were none."""
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
