"""The warm loop as assets see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.microbatch.drain import Checkpoint, Limits
    from dash_pipeline.microbatch.lanes import Lane


class LaneResource(ConfigurableResource[Any]):
    """Drains a lane's partitions into tables and indexes; see `dash_pipeline.microbatch.drain`."""

    def drain(self, lane: Lane, limits: Limits, run_id: str, on_checkpoint: Callable[[Checkpoint], None]) -> Checkpoint:
        """Ingest until the lane is idle or its time is up; returns the totals of the whole drain."""
        from dash_pipeline.microbatch.drain import drain

        return drain(settings(), lane, limits, run_id, on_checkpoint)
