"""The prediction engine's run as an asset: predictions, alerts, and the index of alerts.

Belongs here: run config, lineage, what is reported. Does not belong here: the engine itself
(`dash_pipeline/predictions/`), who starts a run (`sensors/anomalies.py`).
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    Config,
    Failure,
    MaterializeResult,
    MetadataValue,
    define_asset_job,
    in_process_executor,
    multi_asset,
)
from pydantic import Field

from assets import owners
from assets.keys import INTELLIGENCE, SEARCH, anomalies_topic_key, index_key, intel_key, model_key
from dash_pipeline.errors import DashError
from dash_pipeline.settings import settings
from dash_pipeline.topics import ANOMALIES
from resources.engine import EngineResource
from resources.kafka import KafkaResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from dash_pipeline.predictions.engine import Outcome

#: The job's and the op's names.
PREDICT, ENGINE = "predict", "prediction_engine"
# Pools that a run's metadata names.
_NAMED = 50


class EngineConfig(Config):
    """What a run drains, and until when. Defaults are the settings'."""

    partitions: list[int] | None = Field(None, description="partitions of dash.anomalies; all without it")
    idle_timeout_s: float = Field(
        default_factory=lambda: settings().idle_timeout_s, ge=0, description="end after so many seconds without work"
    )
    max_run_s: float = Field(
        default_factory=lambda: settings().max_run_s, ge=1, description="end after so many seconds"
    )


def engine_asset(models: Iterable[str]) -> AssetsDefinition:
    """The multi-asset of the prediction engine."""

    @multi_asset(
        name=ENGINE,
        specs=_specs(models),
        description="Scores the pools and wallets of new anomalies with the champions, raises and delivers alerts.",
    )
    def engine(
        context: AssetExecutionContext, config: EngineConfig, kafka: KafkaResource, engine: EngineResource
    ) -> Iterator[MaterializeResult[Any]]:
        from dash_pipeline.predictions.engine import Limits

        try:
            numbers = config.partitions
            partitions = [p for p in kafka.extent([ANOMALIES]).end if numbers is None or p[1] in numbers]
            done = engine.run(partitions, Limits(config.idle_timeout_s, config.max_run_s), context.run.run_id)
        except DashError as error:
            # The anomaly sensor starts the next run; a retry of this one would only do the same sooner.
            raise Failure(str(error), allow_retries=False) from None
        yield from _results(done)

    return engine


def engine_job() -> "UnresolvedAssetJobDefinition":
    """The prediction engine."""
    return define_asset_job(
        PREDICT,
        AssetSelection.assets(intel_key("predictions"), intel_key("alerts"), index_key("alerts")).without_checks(),
        description="Predicts for new anomalies, raises alerts and delivers them. Started by the anomaly sensor.",
        tags={owners.OWNER_TAG: owners.INTELLIGENCE},
        executor_def=in_process_executor,
    )


def _specs(models: Iterable[str]) -> list[AssetSpec]:
    return [
        AssetSpec(
            intel_key("predictions"),
            deps=[anomalies_topic_key(), *(model_key(model, "champion") for model in models)],
            description="What the champions said about the pools and wallets of anomalies: calibrated probability, the"
            " features it was made from, and what they contributed (SHAP).\n\nRows in `intel.predictions`.",
            group_name=INTELLIGENCE,
            owners=[owners.INTELLIGENCE],
            kinds={"postgres", "lightgbm"},
            metadata={"dagster/table_name": "intel.predictions", "natural key": "anomaly_id, model, subject"},
        ),
        AssetSpec(
            intel_key("alerts"),
            deps=[intel_key("predictions")],
            description="Anomalies that people are told of, by webhook: one per pool and cool-down unless it gets"
            " worse; taken back when a fork orphans what it rests on.\n\nRows in `intel.alerts` and"
            " `intel.deliveries`.",
            group_name=INTELLIGENCE,
            owners=[owners.INTELLIGENCE],
            kinds={"postgres"},
            metadata={"dagster/table_name": "intel.alerts", "natural key": "id"},
        ),
        AssetSpec(
            index_key("alerts"),
            deps=[intel_key("alerts")],
            description="A document per alert, with its prediction; retracted ones say so.\n\nAlias `alerts`.",
            group_name=SEARCH,
            owners=[owners.SEARCH],
            kinds={"opensearch"},
        ),
    ]


def _results(done: "Outcome") -> Iterator[MaterializeResult[Any]]:
    reaction = done.reaction
    pools = sorted(f"0x{pool.hex()}" for pool in reaction.pools)
    yield MaterializeResult(
        asset_key=intel_key("predictions"),
        metadata={
            "messages": done.messages,
            "anomalies": reaction.anomalies,
            "retracted": reaction.retracted,
            "predictions": reaction.predictions,
            "anomalies not scored": reaction.unpredicted,
            "refused messages": done.refused,
            "run seconds": round(done.seconds, 1),
            "pools": MetadataValue.json(pools[:_NAMED]),
        },
    )
    yield MaterializeResult(
        asset_key=intel_key("alerts"),
        metadata={
            "alerts raised": len(reaction.alerts),
            "alerts delivered": done.delivered,
            "deliveries failed": done.failed,
            "alerts": MetadataValue.json([f"0x{id_.hex()}" for id_ in reaction.alerts[:_NAMED]]),
        },
    )
    yield MaterializeResult(asset_key=index_key("alerts"), metadata={"alerts indexed": done.indexed})
