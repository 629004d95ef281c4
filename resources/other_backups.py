"""Snapshots of search and Kafka as assets see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.backups.kafka import Snapshot as KafkaSnapshot
    from dash_pipeline.backups.search import Drilled, Snapshot


class OtherBackupsResource(ConfigurableResource[Any]):
    """Snapshots in the bucket of `DASH_S3_BUCKET`; see `dash_pipeline.backups`."""

    def search(self, say: Callable[[str], None]) -> tuple[Snapshot, list[str]]:
        """Take a snapshot of the indexes, then delete what is no longer kept; the snapshot, and what was deleted."""
        from dash_pipeline.backups import search

        return search.snapshot(settings(), say), search.forget(settings())

    def kafka(self) -> tuple[KafkaSnapshot, list[str]]:
        """Keep topics and offsets, then delete what is no longer kept; the snapshot, and what was deleted."""
        from dash_pipeline.backups import kafka

        return kafka.snapshot(settings()), kafka.forget(settings())

    def drill(self) -> Drilled:
        """Restore the newest snapshot of the indexes beside them, and compare."""
        from dash_pipeline.backups import search

        return search.drill(settings())
