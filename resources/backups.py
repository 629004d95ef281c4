"""Backups as assets and checks see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.backups.database import Backup
    from dash_pipeline.backups.drill import Drill
    from dash_pipeline.backups.wal import Waiting


class BackupsResource(ConfigurableResource[Any]):
    """Backups in the bucket of `DASH_S3_BUCKET`; see `dash_pipeline.backups`."""

    def take(self, full: bool, say: Callable[[str], None]) -> tuple[Backup, list[str], int]:
        """Take a backup of the database; then delete what is no longer kept. Returns the backup, the names of the
        deleted ones, and how many segments of the log went with them."""
        from dash_pipeline.backups import database

        return database.take(settings(), full=full, say=say), *database.prune(settings())

    def drill(self, say: Callable[[str], None]) -> Drill:
        """Restore the newest backup beside the database, and compare."""
        from dash_pipeline.backups.drill import drill

        return drill(settings(), say)

    def waiting(self) -> tuple[Waiting, float]:
        """What the database has not archived yet, and how many seconds a segment may wait."""
        from dash_pipeline.backups import wal
        from dash_pipeline.backups.content import session
        from dash_pipeline.backups.database import replication_dsn

        with session(replication_dsn(settings())) as conn:
            return wal.waiting(conn), settings().archive_waiting_s
