"""The lane's run as an asset: one multi-asset per chain that drains partitions into all of the chain's tables.

Belongs here: run config, what is reported when. Does not belong here: the drain (`dash_pipeline/microbatch/`), the
rules of the checks (`dash_pipeline/storage/checks.py`), who starts a run (`sensors/`).

Dagster reads the annotations of decorated functions: no `from __future__ import annotations` in modules with some.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetMaterialization,
    AssetsDefinition,
    Config,
    Failure,
    MaterializeResult,
    multi_asset,
)
from pydantic import Field

from assets.ingestion.checks import Checker, check_specs
from assets.ingestion.report import anomalies_metadata, checkpoint_metadata, run_metadata
from assets.ingestion.tables import anomalies_spec, table_specs
from assets.keys import anomalies_key, index_key, table_key
from assets.search import INDEXES
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.microbatch.lanes import Lane, lane
from dash_pipeline.settings import settings
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.topics import chain_topics
from resources.kafka import KafkaResource
from resources.lanes import LaneResource, finishing
from resources.timescale import TimescaleResource

if TYPE_CHECKING:
    from dash_pipeline.microbatch.drain import Checkpoint, Limits


class LaneConfig(Config):
    """What a run drains, and until when. Defaults are the settings'."""

    partitions: dict[str, list[int]] | None = Field(
        None, description="topic -> partitions; without it, every partition of the chain's topics"
    )
    idle_timeout_s: float = Field(
        default_factory=lambda: settings().idle_timeout_s,
        ge=0,
        description="end after so many seconds without a message",
    )
    max_run_s: float = Field(
        default_factory=lambda: settings().max_run_s, ge=1, description="end after so many seconds"
    )
    batch_rows: int = Field(
        default_factory=lambda: settings().batch_rows, ge=1, description="rows a micro-batch holds at most"
    )
    batch_bytes: int = Field(
        default_factory=lambda: settings().batch_bytes, ge=1, description="bytes a micro-batch holds at most"
    )
    checkpoint_s: float = Field(
        default_factory=lambda: settings().checkpoint_s, ge=1, description="seconds between reports"
    )
    check_window_s: float = Field(
        7200, gt=0, description="when only checks run: seconds of the chain's time, back from its newest block"
    )

    def limits(self) -> "Limits":
        """The limits of the drain."""
        from dash_pipeline.microbatch.drain import Limits

        return Limits(self.idle_timeout_s, self.max_run_s, self.batch_rows, self.batch_bytes, self.checkpoint_s)


def drain_name(chain: str) -> str:
    """The name of the chain's op, which its run config goes by."""
    return f"drain_{chain}"


def ingestion_asset(chain: Chain) -> AssetsDefinition:
    """The multi-asset of one chain.

    Selecting some of its tables drains all of them: a micro-batch commits the rows of every table together. Selecting
    only checks drains nothing and judges the newest blocks.
    """

    @multi_asset(
        name=drain_name(chain.name),
        specs=[*table_specs(chain), anomalies_spec(chain)],
        check_specs=check_specs(chain.name),
        can_subset=True,
        description=f"Drains Kafka partitions of {chain.title} into the hot tables, then checks the blocks it touched.",
    )
    def ingest(
        context: AssetExecutionContext,
        config: LaneConfig,
        kafka: KafkaResource,
        timescale: TimescaleResource,
        lanes: LaneResource,
    ) -> Iterator[MaterializeResult[Any] | AssetCheckResult]:
        checker = Checker(chain.name, kafka, timescale)
        try:
            if not context.selected_asset_keys:
                yield from checker.audit(context, config.check_window_s)
                return
            with finishing(context.instance, context.run.run_id) as asked_to_stop:
                checker.mark()
                done = lanes.drain(
                    _lane(chain.name, config, kafka),
                    config.limits(),
                    context.run.run_id,
                    lambda checkpoint: _report(context, chain.name, checkpoint, checker),
                )
                if done.ended_early:
                    context.log.info(f"ended early: {done.ended_early}")
                results: list[MaterializeResult[Any] | AssetCheckResult] = [*_results(context, chain.name, done)]
                if not asked_to_stop():  # the hourly checks judge what this run did
                    results += checker.touched(context, done.heights)
            yield from results
        except DashError as error:
            # The lag sensor starts the next run; a retry of this one would only do the same sooner.
            raise Failure(str(error), allow_retries=False) from None

    return ingest


def _lane(chain: str, config: LaneConfig, kafka: KafkaResource) -> Lane:
    if config.partitions is not None:
        return Lane(chain, {topic: tuple(numbers) for topic, numbers in config.partitions.items()})
    return lane(chain, kafka.extent(chain_topics(chain)).end)


def _report(context: AssetExecutionContext, chain: str, done: "Checkpoint", checker: Checker) -> None:
    """Tell Dagster about a checkpoint: the tables that have new rows, and the indexes that follow them."""
    for table, rows in done.rows.items():
        if rows:
            metadata = checkpoint_metadata(done, chain, table)
            context.log_event(AssetMaterialization(table_key(chain, table), metadata=metadata))
    if done.anomalies:
        context.log_event(AssetMaterialization(anomalies_key(chain), metadata=anomalies_metadata(done)))
    for index in INDEXES:
        metadata = {f"{chain}: behind, s": round(done.index_behind_s, 3)}
        context.log_event(AssetMaterialization(index_key(index), metadata=metadata))
    checker.mark()


def _results(context: AssetExecutionContext, chain: str, done: "Checkpoint") -> Iterator[MaterializeResult[Any]]:
    """The tables with new rows, in TABLES' order: Dagster wants what a table is decoded from before the table."""
    for table in TABLES:
        key = table_key(chain, table)
        if done.rows.get(table) and key in context.selected_asset_keys:
            yield MaterializeResult(asset_key=key, metadata=run_metadata(done, table))
    if done.anomalies and anomalies_key(chain) in context.selected_asset_keys:
        yield MaterializeResult(asset_key=anomalies_key(chain), metadata={"run anomalies": done.anomalies})
