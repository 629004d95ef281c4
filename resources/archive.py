"""The archive as assets, checks and sensors see it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.archive.check import Days, Report
    from dash_pipeline.archive.derive import Derived


class ArchiveResource(ConfigurableResource[Any]):
    """The archive in the bucket of `DASH_S3_BUCKET`; see `dash_pipeline.archive`."""

    def due(self) -> Mapping[str, list[date]]:
        """Chain -> its days that are to be archived, the oldest first; chains that have none are left out."""
        from dash_pipeline.archive.retain import all_due

        return all_due(settings())

    def retain(self, run_id: str, table: str, chain: str, days: Collection[date]) -> dict[date, dict[str, int]]:
        """Archive these days of a chain's table; returns what is shown of each day that had rows."""
        from dash_pipeline.archive.retain import retain

        done: dict[date, dict[str, int]] = {}
        retain(
            settings(), run_id, [table], chain, days,
            lambda day, entries: done.update(
                {day.date: {"rows": sum(one.rows for one in entries), "bytes": sum(one.size for one in entries),
                            "objects": len(entries)}}
            ),
        )  # fmt: skip
        return done

    def derive(self, run_id: str, chain: str, first: date, last: date) -> list[Derived]:
        """Decode these days' archived logs again, and replace archived pool_events that differ."""
        from dash_pipeline.archive.derive import derive

        return derive(settings(), run_id, chain, first, last)

    def compact(self, run_id: str) -> int:
        """Merge small objects; returns how many there are fewer."""
        from dash_pipeline.archive.rewrite import compact

        return compact(settings(), run_id)

    def size(self, table: str) -> dict[str, int]:
        """What a table takes: hot, all chains, with its indexes; archived, all chains."""
        from dash_pipeline.archive.manifest import sizes
        from dash_pipeline.storage.timescale import connect

        with connect(settings()) as conn:
            hot, archived, rows = sizes(conn, table)
        return {"hot bytes": hot, "archived bytes": archived, "archived rows": rows}

    def sizes(self) -> dict[str, int]:
        """What the hot tables and what else grows in the database take, in bytes; what is archived. All chains."""
        from dash_pipeline.archive.manifest import sizes
        from dash_pipeline.archive.parquet import ARCHIVED
        from dash_pipeline.storage.tables import TABLES
        from dash_pipeline.storage.timescale import relation_bytes, session

        with session(settings()) as conn:
            tables = {table: sizes(conn, table) for table in ARCHIVED}
            rollups = [f"rollup.{table}" for table in ("wallet_blocks", "pool_candles", "pool_minutes")]
            others = relation_bytes(conn, [*rollups, "ops.block_tree"])
            others["schema side"] = sum(relation_bytes(conn, [f"side.{table}" for table in TABLES]).values())
        return {
            "hot bytes": sum(hot for hot, _, _ in tables.values()),
            "archived bytes": sum(archived for _, archived, _ in tables.values()),
            "archived rows": sum(rows for _, _, rows in tables.values()),
            **{f"{table}: hot bytes": hot for table, (hot, _, _) in tables.items()},
            **{f"{name}: bytes": size for name, size in others.items()},
        }

    def missing_days(self, chain: str) -> Days:
        """Days of the chain that are in neither place."""
        from dash_pipeline.archive.check import missing_days

        return missing_days(settings(), chain)

    def doubled(self, chain: str) -> dict[str, int]:
        """Tables and days of the chain with rows in both places; how many."""
        from dash_pipeline.archive.check import doubled

        return doubled(settings(), chain)

    def lost(self, chain: str) -> tuple[str, ...]:
        """A line for each table and day with rows in neither place."""
        from dash_pipeline.archive.check import lost

        return lost(settings(), chain)

    def unlisted(self, chain: str) -> tuple[list[tuple[str, date, int, int]], list[tuple[date, int, int]]]:
        """Of the chain: table, day, rows that left the hot table and rows that listed objects hold, where these are
        fewer; day, archived pool_events and archived logs, where these are fewer."""
        from dash_pipeline.archive import manifest
        from dash_pipeline.storage.timescale import session

        with session(settings()) as conn:
            return manifest.unlisted(conn, chain), manifest.underivable(conn, chain)

    def check(self, chain: str) -> Report:
        """Every object of the chain, read again."""
        from dash_pipeline.archive.check import check

        return check(settings(), chain=chain)
