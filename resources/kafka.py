"""Kafka as the sensors and assets see it: offsets, never messages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.lag import Extent, ExtentReader


@lru_cache(maxsize=4)
def _reader(timeout_s: float) -> ExtentReader:
    """One connection per process: resources are made anew for each tick."""
    from dash_pipeline.lag import ExtentReader

    return ExtentReader(settings(), timeout_s)


class KafkaResource(ConfigurableResource[Any]):
    """The brokers of `DASH_KAFKA_BOOTSTRAP`."""

    timeout_s: float = 5.0

    def extent(self, topics: Iterable[str]) -> Extent:
        """First and last offsets of `topics`; raises Unavailable in time for the next tick."""
        return _reader(self.timeout_s).read(topics)
