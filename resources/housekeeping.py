"""Housekeeping as assets see it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from dash_pipeline.housekeeping.database import Stale
    from resources.instance import Pruned


class HousekeepingResource(ConfigurableResource[Any]):
    """The sweeps of `dash_pipeline.housekeeping`, and of Dagster's own records, with the settings' windows."""

    def documents(self, say: Callable[[str], None]) -> dict[str, int]:
        """Delete documents past their window; alias -> how many."""
        from dash_pipeline.housekeeping import search

        return search.roll_off(settings(), say)

    def uploads(self) -> list[str]:
        """End uploads that nobody finished; the keys they were for."""
        from dash_pipeline.housekeeping import objects

        return objects.abort_uploads(settings())

    def staging(self) -> Stale:
        """Drop staging tables that no connection has any more."""
        from dash_pipeline.housekeeping import database

        return database.drop_stale_staging(settings())

    def branches(self) -> dict[str, int]:
        """Delete rows of branches that have lost for good; table -> how many."""
        from dash_pipeline.housekeeping import rows

        return rows.drop_lost_branches(settings())

    def rollups(self) -> dict[str, int]:
        """Delete sums that nobody reads any more; table -> how many."""
        from dash_pipeline.housekeeping import rows

        return rows.drop_old_rollups(settings())

    def operations(self) -> dict[str, int]:
        """Delete old checkpoints, and notices that are over; table -> how many."""
        from dash_pipeline.storage import health, timescale

        with timescale.session(settings()) as conn:
            return health.sweep(conn, settings().dagster_days)

    def compress(self, say: Callable[[str], None]) -> int:
        """Compress hot days where the server can; how many chunks."""
        from dash_pipeline.archive.compress import compress

        return compress(settings(), say)

    def records(self, instance: DagsterInstance) -> Pruned:
        """Delete Dagster's old runs, events and ticks."""
        from resources.instance import prune

        return prune(instance, timedelta(days=settings().dagster_days))
