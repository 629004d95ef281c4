"""One run's side of commits without a broker, and questions about what they left. For integration tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash_pipeline.microbatch.commit import Committed, Rules, commit, decode_batch
from dash_pipeline.microbatch.consume import Batch
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.storage.timescale import DeadLetter
from tests.chain import ROWS

LIMIT = 8 << 20


class Run:
    """One run's side of things: its connection, its offsets, what it published."""

    detector: Detector | None = None

    def __init__(self, settings: Settings, chain: str, name: str = "run", rules: Rules | None = None) -> None:
        self.conn = db.connect(settings)
        self.writer = db.Writer(self.conn)
        self.chain, self.name = chain, name
        self.rules = rules or Rules(256)
        self.published: list[DeadLetter] = []
        self.expected: dict[tuple[str, int], int] | None = None

    def take(self, batch: Batch) -> Committed:
        """Commit a batch. Where this run left the partitions is remembered, as in a lane."""
        if self.expected is None:
            self.expected = {}
        new = {p: o for p, o in batch.first_offsets.items() if p not in self.expected}
        if new:
            self.expected |= db.claim(self.conn, new, self.name)
        done = commit(
            self.writer,
            self.chain,
            decode_batch(batch, self.chain, LIMIT),
            self.expected,
            batch,
            self.rules,
            self.name,
            self.published.extend,
            self.detector,
        )
        self.expected |= batch.next_offsets
        return done

    def counts(self, schema: str = "chain") -> dict[str, int]:
        return {name: self.one(f"SELECT count(*) FROM {schema}.{name} WHERE chain = %s", self.chain) for name in TABLES}

    def blocks_of(self, schema: str) -> dict[str, set[str]]:
        """Which blocks have rows, by table."""
        return {
            name: {
                bytes(row[0]).rstrip(b"\0").decode().removeprefix("block:")
                for row in self.conn.execute(
                    f"SELECT DISTINCT block_hash FROM {schema}.{name} WHERE chain = %s",
                    (self.chain,),
                )
            }
            for name in TABLES
        }

    def content(self, schema: str = "chain") -> dict[str, list[tuple[Any, ...]]]:
        return {
            name: self.conn.execute(
                f"SELECT * FROM {schema}.{name} x WHERE chain = %s ORDER BY x::text",
                (self.chain,),
            ).fetchall()
            for name in TABLES
        }

    def statuses(self) -> dict[str, str]:
        return {
            bytes(h).rstrip(b"\0").decode().removeprefix("block:"): s.value
            for h, s in self.conn.execute(
                "SELECT block_hash, status FROM ops.block_tree WHERE chain = %s", (self.chain,)
            )
        }

    def letters(self) -> list[tuple[str, int, str]]:
        """Topic, offset and reason of each dead letter."""
        return self.conn.execute(
            "SELECT split_part(topic, '.', 2), \"offset\", reason FROM ops.dead_letters WHERE topic LIKE %s"
            ' ORDER BY topic, partition, "offset"',
            (f"{self.chain}.%",),
        ).fetchall()

    def reorgs(self) -> list[tuple[Any, ...]]:
        return self.conn.execute(
            "SELECT depth, fork_number, old_tip_number, old_tip_hash, new_tip_number, new_tip_hash, orphaned_blocks,"
            " restored_blocks, rows_moved FROM ops.reorgs WHERE chain = %s ORDER BY id",
            (self.chain,),
        ).fetchall()

    def one(self, query: str, *parameters: Any) -> Any:
        row = self.conn.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]

    def check(self, canonical: list[str], aside: Sequence[str] = ()) -> None:
        """Every table holds all rows of exactly these blocks, schema side those."""
        for schema, names in (("chain", canonical), ("side", aside)):
            assert self.blocks_of(schema) == {key: set(names) for key in TABLES}, schema
            assert self.counts(schema) == {name: count * len(names) for name, count in ROWS.items()}, schema
