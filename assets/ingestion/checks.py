"""Asset checks of the hot tables, made from the rules in `dash_pipeline/storage/checks.py`.

Belongs here: names, severities, metadata, and when a check has nothing to say. Does not belong here: SQL.

A check that may not judge a single block yet yields no result: the last verdict stays until there is a new one. The
blocks that a run had to leave (their other topics were behind) are judged by the hourly run of the checks alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    MetadataValue,
)

from assets.keys import table_key
from dash_pipeline.errors import Unavailable
from dash_pipeline.settings import settings
from dash_pipeline.storage import checks as rules
from dash_pipeline.topics import chain_topics
from resources.kafka import KafkaResource
from resources.timescale import TimescaleResource

if TYPE_CHECKING:
    from dash_pipeline.storage.timescale import Connection

FRESH = "fresh"
WALL_CLOCK = "close_to_wall_clock"

# How long the checks alone wait for the lanes to ingest what Kafka held when they began.
_CATCH_UP_S = 60.0
_POLL_S = 2.0


def check_specs(chain: str) -> list[AssetCheckSpec]:
    """Every check of one chain's tables."""
    specs = [
        AssetCheckSpec(
            WALL_CLOCK,
            asset=table_key(chain, "blocks"),
            description="The newest block is not older than `DASH_WALL_CLOCK_GAP_S`: the feed is live, not a replay.",
        )
    ]
    for rule in rules.BLOCK_CHECKS:
        asset = table_key(chain, rule.table)
        specs += [
            AssetCheckSpec(rule.name, asset=asset, description=rule.about, blocking=True),
            AssetCheckSpec(
                FRESH,
                asset=asset,
                description="The newest rows are at most `DASH_FRESH_WITHIN_S` seconds of the chain's time behind the"
                " newest block that should have some.",
                blocking=True,
            ),
        ]
    return specs


class Checker:
    """Judges one chain's blocks, as far as they have settled."""

    def __init__(self, chain: str, kafka: KafkaResource, timescale: TimescaleResource) -> None:
        self._chain = chain
        self._kafka = kafka
        self._timescale = timescale
        self._settling = rules.Settling(settings().settle_blocks)

    def mark(self) -> bool:
        """Remember how far Kafka and the chain go now; False when that cannot be known, or there is no block yet.

        The tip is read first: messages that come in between belong to blocks above it, or settle later.
        """
        try:
            with self._timescale.connect() as conn:
                tip = rules.tip(conn, self._chain)
            if tip is None:
                return False
            self._settling.mark(self._kafka.extent(chain_topics(self._chain)).end, tip)
        except Unavailable:
            return False  # one mark less; the lane goes on
        return True

    def touched(self, context: AssetExecutionContext, heights: rules.Range | None) -> Iterator[AssetCheckResult]:
        """Judge the settled ones of the blocks that a drain touched."""
        self.mark()
        with self._timescale.connect() as conn:
            yield from self._judge(context, conn, [heights] if heights else [])

    def audit(self, context: AssetExecutionContext, window_s: float) -> Iterator[AssetCheckResult]:
        """Judge the settled blocks of the newest `window_s` seconds of the chain's time."""
        marked = self.mark()
        with self._timescale.connect() as conn:
            if marked:
                self._wait(conn)
            yield from self._judge(context, conn, rules.recent_range(conn, self._chain, window_s))

    def _wait(self, conn: Connection) -> None:
        """Give the lanes time to ingest what Kafka held at the mark."""
        from dash_pipeline.storage.timescale import committed_offsets

        topics = frozenset().union(*(rules.topics_of(rule, self._chain) for rule in rules.BLOCK_CHECKS))
        deadline = time.monotonic() + _CATCH_UP_S
        while time.monotonic() < deadline:
            if self._settling.settled(committed_offsets(conn), topics) is not None:
                return
            time.sleep(_POLL_S)

    def _judge(
        self, context: AssetExecutionContext, conn: Connection, ranges: Sequence[rules.Range]
    ) -> Iterator[AssetCheckResult]:
        selected = {(key.asset_key, key.name) for key in context.selected_asset_check_keys}
        for result in self._verdicts(context, conn, ranges):
            if (result.asset_key, result.check_name) in selected:
                yield result

    def _verdicts(
        self, context: AssetExecutionContext, conn: Connection, ranges: Sequence[rules.Range]
    ) -> Iterator[AssetCheckResult]:
        from dash_pipeline.storage.timescale import committed_offsets

        gap = rules.wall_clock_gap(conn, self._chain)
        if gap is not None:
            yield self._within("blocks", WALL_CLOCK, gap, settings().wall_clock_gap_s, AssetCheckSeverity.WARN)
        committed = committed_offsets(conn)
        quiet = rules.quiet_for(conn, self._chain) >= settings().idle_timeout_s
        for rule in rules.BLOCK_CHECKS:
            upto = self._settling.settled(committed, rules.topics_of(rule, self._chain), quiet=quiet)
            if upto is None:
                context.log.info(f"{self._chain}: {rule.name} has no settled block to judge")
                continue
            verdict = rules.judge(conn, rule, self._chain, rules.clip(ranges, upto))
            if verdict.judged:
                yield self._per_block(rule, verdict)
            behind = rules.rows_behind_blocks(conn, rule, self._chain, upto)
            if behind is not None:
                yield self._within(rule.table, FRESH, behind, settings().fresh_within_s)

    def _per_block(self, rule: rules.BlockCheck, verdict: rules.Verdict) -> AssetCheckResult:
        return AssetCheckResult(
            asset_key=table_key(self._chain, rule.table),
            check_name=rule.name,
            passed=not verdict.wrong,
            description=f"{verdict.wrong:,} of {verdict.judged:,} blocks are wrong" if verdict.wrong else None,
            metadata={
                "blocks judged": verdict.judged,
                "blocks wrong": verdict.wrong,
                "wrong blocks": MetadataValue.json(list(verdict.examples)),
            },
        )

    def _within(
        self,
        table: str,
        name: str,
        seconds: float,
        limit: float,
        severity: AssetCheckSeverity = AssetCheckSeverity.ERROR,
    ) -> AssetCheckResult:
        return AssetCheckResult(
            asset_key=table_key(self._chain, table),
            check_name=name,
            passed=seconds <= limit,
            severity=severity,
            metadata={"behind, s": round(seconds, 1), "allowed, s": limit},
        )
