"""The prediction engine as assets and sensors see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.predictions.engine import Limits, Outcome
    from dash_pipeline.topics import Partition


class EngineResource(ConfigurableResource[Any]):
    """Drains dash.anomalies into predictions and alerts; see `dash_pipeline.predictions.engine`."""

    def run(self, partitions: Iterable[Partition], limits: Limits, run_id: str) -> Outcome:
        """Predict, alert and deliver until there is nothing to do or time is up."""
        from dash_pipeline.models.champions import PATIENT_S, Champions
        from dash_pipeline.predictions.engine import run_engine

        with Champions(settings(), first_look_s=PATIENT_S) as champions:
            return run_engine(settings(), partitions, champions, limits, run_id)
