"""The hot store as sensors and checks see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.errors import Unavailable
from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.storage.timescale import Connection
    from dash_pipeline.topics import Partition


class TimescaleResource(ConfigurableResource[Any]):
    """The database of `DASH_TIMESCALE_DSN`."""

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection for one task; a database that goes away becomes one line (`Unavailable`)."""
        import psycopg

        from dash_pipeline.storage import timescale

        try:
            with timescale.connect(settings()) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise Unavailable(f"database: {' '.join(str(error).split())}") from error

    def progress(self) -> tuple[dict[Partition, int], frozenset[str]]:
        """The next offset to ingest of every partition that ever was, and the chains with committed work that the
        indexes or the topic of anomalies do not show yet."""
        from dash_pipeline.storage import anomalies, timescale

        with self.connect() as connection:
            unfinished = timescale.unindexed(connection) | anomalies.unpublished(connection)
            return timescale.committed_offsets(connection), unfinished

    def reactions(self) -> tuple[dict[Partition, int], int, int]:
        """The next offsets of dash.anomalies' partitions, deliveries that are due, alerts that are not indexed."""
        from dash_pipeline.storage import alerts, timescale
        from dash_pipeline.topics import ANOMALIES

        with self.connect() as connection:
            committed = timescale.committed_offsets(connection)
            due, unindexed = alerts.waiting(connection, settings().alert_routes)
        return {place: next_ for place, next_ in committed.items() if place[0] == ANOMALIES}, due, unindexed

    def absent(self, relations: Sequence[str]) -> list[str]:
        """Those of the relations (`schema.name`) that the database does not have."""
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL", (list(relations),)
            ).fetchall()
        return [name for (name,) in rows]

    def changed_hours(self) -> int:
        """Hours and tokens that the marts do not show yet."""
        from dash_pipeline.storage import changes

        with self.connect() as connection:
            return changes.waiting(connection)
