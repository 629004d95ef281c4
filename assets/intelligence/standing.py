"""Checks of what intelligence makes: predictions, alerts and their index; labels, versions and evaluations of models.

Belongs here: names, severities, metadata. Does not belong here: SQL (`dash_pipeline/storage/invariants.py`), the
registry (`dash_pipeline/models/`), drift (`models.py`).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetSelection,
    define_asset_job,
    in_process_executor,
    multi_asset_check,
)

from assets import owners
from assets.keys import index_key, intel_key, labels_key, model_key
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.storage import invariants
from resources.models import ModelsResource
from resources.timescale import TimescaleResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

CHECK_CONCLUSIONS = "check_conclusions"

#: Asset -> check, what must hold, and the field of `invariants.Late` that counts what does not.
_CONCLUSIONS = {
    intel_key("predictions"): ("every_anomaly_reacted_to", "Somebody reacted to every anomaly", "anomalies"),
    intel_key("alerts"): ("delivered", "Every alert that is due has arrived at its receiver", "deliveries"),
    index_key("alerts"): ("shows_every_alert", "The index shows every alert as it is", "unindexed"),
}


def conclusion_checks() -> AssetChecksDefinition:
    """Whether what follows from anomalies has followed."""
    specs = [
        AssetCheckSpec(name, asset=key, description=f"{about} within {invariants.LATE_S / 60:g} minutes.")
        for key, (name, about, _) in _CONCLUSIONS.items()
    ]

    @multi_asset_check(name="check_waiting", specs=specs, can_subset=True)
    def check(context: AssetCheckExecutionContext, timescale: TimescaleResource) -> Iterator[AssetCheckResult]:
        with timescale.connect() as conn:
            late = invariants.late(conn)
        for key in sorted(context.selected_asset_check_keys):
            waiting: int = getattr(late, _CONCLUSIONS[key.asset_key][2])
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=not waiting,
                severity=AssetCheckSeverity.WARN,
                metadata={"late": waiting},
            )

    return check


def conclusions_job() -> "UnresolvedAssetJobDefinition":
    """The checks of predictions, alerts and their index."""
    return define_asset_job(
        CHECK_CONCLUSIONS,
        AssetSelection.checks_for_assets(*_CONCLUSIONS),
        description="Looks for anomalies nobody reacted to, alerts that did not arrive, and those the index lacks.",
        tags={owners.OWNER_TAG: owners.INTELLIGENCE},
        executor_def=in_process_executor,
    )


def registry_checks(models: Mapping[str, str]) -> AssetChecksDefinition:
    """Whether what models are made of, and the newest of each, can be read and is what its hash says."""
    about = {
        ("labels", "as_kept"): "The labels kept last can be read, have rows of both classes, and name their hash.",
        ("version", "loads"): "The newest version loads, and its content is what its card's hash says.",
        ("evaluation", "better_than_chance"): "The newest version ranks held-out rows better than chance (ROC AUC).",
    }
    wanted = {
        AssetCheckKey(labels_key(model) if stage == "labels" else model_key(model, stage), name): (model, stage)
        for model in models
        for stage, name in about
    }
    specs = [
        AssetCheckSpec(key.name, asset=key.asset_key, description=about[stage, key.name])
        for key, (_, stage) in wanted.items()
    ]

    @multi_asset_check(name="check_registry", specs=specs, can_subset=True)
    def check(context: AssetCheckExecutionContext, models: ModelsResource) -> Iterator[AssetCheckResult]:
        for key in sorted(context.selected_asset_check_keys):
            model, stage = wanted[key]
            try:
                passed, said = models.sound(model, stage)
            except Unavailable:
                raise  # what could not be read is no verdict
            except DashError as error:
                passed, said = False, str(error)
            yield AssetCheckResult(asset_key=key.asset_key, check_name=key.name, passed=passed, description=said)

    return check
