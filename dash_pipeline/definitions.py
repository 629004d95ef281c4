"""The one place where assets, sensors and resources meet.

Belongs here: what each code location is made of. Does not belong here: the parts.

A location's parts are imported when it is built: what is broken in one location is never imported by another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dagster import Definitions

from dash_pipeline.chains import load_chains
from dash_pipeline.settings import settings


def build_defs(location: str, *, resource_overrides: Mapping[str, object] | None = None) -> Definitions:
    """The definitions of one code location; `resource_overrides` replaces resources by name, for tests."""
    parts = _LOCATIONS[location]()
    parts["resources"] |= resource_overrides or {}
    return Definitions(**parts)


def _ingestion() -> dict[str, Any]:
    from assets.code import linked
    from assets.ingestion.ingest import ingestion_asset
    from assets.ingestion.standing import chain_checks, topic_checks
    from assets.ingestion.topics import topic_specs
    from assets.jobs import check_job, ingest_jobs, rebuild_job
    from assets.search import index_assets, index_checks
    from resources.kafka import KafkaResource
    from resources.lanes import LaneResource
    from resources.notifier import NotifierResource
    from resources.opensearch import OpenSearchResource
    from resources.timescale import TimescaleResource
    from sensors.alerts import failure_alerts
    from sensors.lag import lag_sensor
    from sensors.schedules import hourly_checks

    chains = load_chains(settings().chains_file)
    ingest, checks = ingest_jobs(chains.values()), check_job(chains.values())
    return {
        "assets": [
            *linked(topic_specs(chains.values()), topic_specs),
            *linked(ingestion_asset(chain) for chain in chains.values()),
            *linked(index_assets(chains.values())),
        ],
        "asset_checks": [index_checks(), topic_checks(chains.values()), *map(chain_checks, chains.values())],
        "jobs": [*ingest, checks, rebuild_job()],
        "schedules": [hourly_checks(checks)],
        "sensors": [lag_sensor(chains, ingest), failure_alerts()],
        "resources": {
            "kafka": KafkaResource(),
            "timescale": TimescaleResource(),
            "lanes": LaneResource(),
            "notifier": NotifierResource(),
            "opensearch": OpenSearchResource(),
        },
    }


def _intelligence() -> dict[str, Any]:
    from assets.code import linked
    from assets.intelligence.engine import engine_asset, engine_job
    from assets.intelligence.models import ABOUT, drift_check, drift_job, model_assets, promotion_jobs, train_job
    from assets.intelligence.standing import conclusion_checks, conclusions_job, registry_checks
    from resources.engine import EngineResource
    from resources.kafka import KafkaResource
    from resources.models import ModelsResource
    from resources.timescale import TimescaleResource
    from sensors.anomalies import anomaly_sensor
    from sensors.schedules import daily_drift, hourly_conclusions, weekly_training
    from sensors.training import training_sensor

    chains = load_chains(settings().chains_file).values()
    engine, drift, training = engine_job(), drift_job(ABOUT), [train_job(model) for model in ABOUT]
    conclusions = conclusions_job()
    return {
        "assets": linked([engine_asset(ABOUT), *(asset for model in ABOUT for asset in model_assets(model, chains))]),
        "asset_checks": [*map(drift_check, ABOUT), registry_checks(ABOUT), conclusion_checks()],
        "jobs": [engine, conclusions, drift, *training, *promotion_jobs()],
        "schedules": [hourly_conclusions(conclusions), daily_drift(drift), *(weekly_training(job) for job in training)],
        "sensors": [anomaly_sensor(engine), training_sensor(ABOUT, training)],
        "resources": {
            "engine": EngineResource(),
            "kafka": KafkaResource(),
            "models": ModelsResource(),
            "timescale": TimescaleResource(),
        },
    }


def _lifecycle() -> dict[str, Any]:
    from assets.code import linked
    from assets.lifecycle import archive, backups, health, housekeeping, on_time, other_backups
    from resources.archive import ArchiveResource
    from resources.backups import BackupsResource
    from resources.health import HealthResource
    from resources.housekeeping import HousekeepingResource
    from resources.kafka import KafkaResource
    from resources.notifier import NotifierResource
    from resources.other_backups import OtherBackupsResource
    from resources.timescale import TimescaleResource
    from sensors import schedules
    from sensors.checks import check_alerts
    from sensors.operations import operations_sensor
    from sensors.retention import retention_sensor

    chains = load_chains(settings().chains_file).values()
    days, archived = archive.archive_jobs(chains), archive.archive_check_job(chains)
    clocked = [
        (archive.compaction_job(), schedules.daily_compaction),
        (archived, schedules.daily_archive_check),
        (backups.backup_job(), schedules.daily_backup),
        (backups.drill_job(), schedules.weekly_drill),
        (backups.waiting_job(), schedules.hourly_waiting),
        (other_backups.other_backups_job(), schedules.daily_other_backups),
        (other_backups.search_drill_job(), schedules.weekly_search_drill),
        (housekeeping.housekeeping_job(), schedules.daily_housekeeping),
        (health.health_job(chains), schedules.frequent_health),
    ]
    assets = linked(
        [
            *map(archive.archive_asset, chains),
            *map(archive.derived_asset, chains),
            archive.compaction_asset(chains),
            archive.sizes_asset(),
            *backups.backup_assets(chains),
            *other_backups.other_backup_assets(),
            *housekeeping.housekeeping_assets(chains),
            health.health_asset(chains),
        ]
    )
    on_time_checks = on_time.on_time_checks(assets)
    clocked.append((on_time.on_time_job(on_time_checks), schedules.daily_on_time))
    return {
        "assets": assets,
        "asset_checks": [check for chain in chains for check in archive.archive_checks(chain)]
        + [backups.waiting_check(), on_time_checks],
        "jobs": [*days, *archive.derive_jobs(chains), *(job for job, _ in clocked)],
        "schedules": [schedule(job) for job, schedule in clocked],
        "sensors": [retention_sensor(chains, days), operations_sensor(chains), check_alerts()],
        "resources": {
            "archive": ArchiveResource(),
            "backups": BackupsResource(),
            "health": HealthResource(),
            "housekeeping": HousekeepingResource(),
            "kafka": KafkaResource(),
            "notifier": NotifierResource(),
            "other_backups": OtherBackupsResource(),
            "timescale": TimescaleResource(),
        },
    }


def _marts() -> dict[str, Any]:
    from assets.code import linked
    from assets.keys import ANALYTICS, view_key
    from assets.marts.views import marts_job, view_assets, view_job
    from resources.dbt import PROJECT, DbtResource, load_manifest
    from resources.timescale import TimescaleResource
    from sensors.marts import marts_sensor
    from sensors.views import views_sensor

    manifest = load_manifest()
    (views,) = linked(
        [view_assets(manifest, load_chains(settings().chains_file))],
        files={
            view_key(node["name"]): PROJECT / node["original_file_path"]
            for node in manifest["nodes"].values()
            if node["resource_type"] == "model"
        },
    )
    everything, changed = view_job(), marts_job()
    relations = [f"{ANALYTICS}.{key.path[-1]}" for key in sorted(views.keys)]
    return {
        "assets": [views],
        "jobs": [everything, changed],
        "sensors": [views_sensor(everything, relations), marts_sensor(changed)],
        "resources": {"dbt": DbtResource(), "timescale": TimescaleResource()},
    }


_LOCATIONS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "ingestion": _ingestion,
    "intelligence": _intelligence,
    "lifecycle": _lifecycle,
    "marts": _marts,
}
