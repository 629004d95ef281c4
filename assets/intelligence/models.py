"""The models' life as assets: labels -> version -> evaluation -> champion; promotion and roll-back as jobs.

Belongs here: names, lineage, what is shown of a training. Does not belong here: training (`dash_pipeline/models/`), who
starts it (`sensors/training.py`, `sensors/schedules.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    Config,
    DataVersion,
    Failure,
    JobDefinition,
    MaterializeResult,
    MetadataValue,
    OpExecutionContext,
    asset,
    asset_check,
    define_asset_job,
    in_process_executor,
    job,
    multi_asset,
    op,
)
from pydantic import Field

from assets import owners
from assets.keys import MODELS, labels_key, model_key, table_key
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from resources.models import ModelsResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from dash_pipeline.models.lifecycle import Training

CHECK_DRIFT = "check_drift"

#: Model -> what it says.
ABOUT: Mapping[str, str] = {
    "pool_risk": "is this Uniswap V2 pool a rug pull",
    "wallet_risk": "is this account illicit, judged by its transactions",
    "liquidity_outlook": "will this pool lose at least half its liquidity within the next hour",
}


# Models whose labels are made by looking forward in the platform's own history.
_OF_HISTORY = {"liquidity_outlook"}


class TrainConfig(Config):
    """How a training is done."""

    trials: int = Field(0, ge=0, le=500, description="tune LightGBM's parameters with so many trials first; 0: do not")


class PromoteConfig(Config):
    """What is promoted."""

    model: str = Field(description="pool_risk, wallet_risk or liquidity_outlook")
    version: str = Field(description="a version of it, as `dash-pipeline models list` names them")


class RollbackConfig(Config):
    """What is rolled back."""

    model: str = Field(description="pool_risk, wallet_risk or liquidity_outlook")


def train_name(model: str) -> str:
    """The name of the job that trains a model."""
    return f"train_{model}"


def model_assets(model: str, chains: Iterable[Chain]) -> list[AssetsDefinition]:
    """A model's labels, and its training."""
    return [_labels(model, chains), _training(model)]


def _labels(model: str, chains: Iterable[Chain]) -> AssetsDefinition:
    @asset(
        key=labels_key(model),
        deps=[table_key(chain.name, "pool_events") for chain in chains] if model in _OF_HISTORY else [],
        description=f"Labelled data of `{model}` ({ABOUT[model]}), checked against its schema and kept under its hash"
        " in the bucket. From `DASH_LABELS`, else the sample that comes with the project; liquidity_outlook: made from"
        " the platform's own history.",
        group_name=MODELS,
        owners=[owners.INTELLIGENCE],
        kinds={"s3"},
    )
    def labels(models: ModelsResource) -> MaterializeResult[Any]:
        try:
            stored = models.store_labels(model)
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        return MaterializeResult(
            metadata={
                "rows": stored.rows,
                "positives": stored.positives,
                "source": stored.source,
                "object": stored.key,
            },
            data_version=DataVersion(stored.sha256),
        )

    return labels


def _training(model: str) -> AssetsDefinition:
    spec = {"group_name": MODELS, "owners": [owners.INTELLIGENCE], "kinds": {"lightgbm", "s3"}}

    @multi_asset(
        name=f"{model}_training",
        specs=[
            AssetSpec(
                model_key(model, "version"),
                deps=[labels_key(model)],
                description=f"A trained version of `{model}` in the registry, immutable, with its card.",
                **spec,  # type: ignore[arg-type]
            ),
            AssetSpec(
                model_key(model, "evaluation"),
                deps=[model_key(model, "version")],
                description="How good it is on rows it was not trained on, and against the champion on the same rows.",
                **spec,  # type: ignore[arg-type]
            ),
            AssetSpec(
                model_key(model, "champion"),
                deps=[model_key(model, "evaluation")],
                description=f"The version of `{model}` that scores. Replaced only by one that beats it on the same"
                " held-out rows, or by hand (jobs promote_model, rollback_model).",
                skippable=True,
                **spec,  # type: ignore[arg-type]
            ),
        ],
        description=f"Trains `{model}`, compares it with the champion and promotes it if it is better.",
    )
    def train(
        context: AssetExecutionContext, config: TrainConfig, models: ModelsResource
    ) -> Iterator[MaterializeResult[Any]]:
        try:
            done = models.train(model, config.trials, context.log.info)
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        yield from _results(model, done)

    return train


def _results(model: str, done: "Training") -> Iterator[MaterializeResult[Any]]:
    from dash_pipeline.models.show import card_markdown

    yield MaterializeResult(
        asset_key=model_key(model, "version"),
        metadata={
            "version": done.version,
            "rows": done.rows,
            "positives": done.positives,
            "labels": done.labels_sha256,
            "card": MetadataValue.json(done.card),
        },
        data_version=DataVersion(done.version),
    )
    yield MaterializeResult(
        asset_key=model_key(model, "evaluation"),
        metadata={
            "model card": MetadataValue.md(card_markdown(done)),
            "verdict": done.verdict,
            **{name: round(value, 5) for name, value in done.metrics.items()},
        },
    )
    if done.promoted:
        yield MaterializeResult(
            asset_key=model_key(model, "champion"),
            metadata={"version": done.version, "replaced": done.champion_before or "none", "reason": done.verdict},
        )


def drift_check(model: str) -> AssetChecksDefinition:
    """Whether what the champion scores still looks like what it was trained on."""

    @asset_check(
        name="drift",
        asset=model_key(model, "champion"),
        description="Population stability index of each feature and of the score, the newest predictions against the"
        " training data: below 0.25 for the score and for all but a few features.",
    )
    def check(models: ModelsResource) -> AssetCheckResult:
        found = models.drift(model)
        return AssetCheckResult(
            passed=not found.drifted,
            severity=AssetCheckSeverity.WARN,
            description=found.summary,
            metadata={"rows": found.rows, **{f"psi {name}": round(value, 4) for name, value in found.psi.items()}},
        )

    return check


def train_job(model: str) -> "UnresolvedAssetJobDefinition":
    """Labels, training, evaluation, promotion of one model."""
    return define_asset_job(
        train_name(model),
        AssetSelection.assets(
            labels_key(model), *(model_key(model, stage) for stage in ("version", "evaluation", "champion"))
        ).without_checks(),
        description=f"Trains `{model}` ({ABOUT[model]}) on its labels as they are now; promotes it if it is better.",
        tags={owners.OWNER_TAG: owners.INTELLIGENCE},
        executor_def=in_process_executor,
    )


def drift_job(models: Mapping[str, str]) -> "UnresolvedAssetJobDefinition":
    """The checks of every model, drift among them."""
    stages = [model_key(model, stage) for model in models for stage in ("version", "evaluation", "champion")]
    return define_asset_job(
        CHECK_DRIFT,
        AssetSelection.checks_for_assets(*map(labels_key, models), *stages),
        description="Compares what the champions scored lately with what they were trained on; reads labels and the"
        " newest versions again.",
        tags={owners.OWNER_TAG: owners.INTELLIGENCE},
        executor_def=in_process_executor,
    )


def promotion_jobs() -> list[JobDefinition]:
    """Promotion and roll-back by hand: a button each."""

    @op
    def promote(context: OpExecutionContext, config: PromoteConfig, models: ModelsResource) -> None:
        try:
            context.log.info(models.promote(config.model, config.version))
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    @op
    def rollback(context: OpExecutionContext, config: RollbackConfig, models: ModelsResource) -> None:
        try:
            context.log.info(models.rollback(config.model))
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    tags = {owners.OWNER_TAG: owners.INTELLIGENCE}

    @job(name="promote_model", executor_def=in_process_executor, tags=tags, description="Make a version the champion.")
    def promote_job() -> None:
        promote()

    @job(
        name="rollback_model",
        executor_def=in_process_executor,
        tags=tags,
        description="Make the champion before this one the champion again.",
    )
    def rollback_job() -> None:
        rollback()

    return [promote_job, rollback_job]
