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
    from assets.ingestion.ingest import ingestion_asset
    from assets.ingestion.topics import topic_specs
    from assets.jobs import check_job, ingest_jobs, rebuild_job
    from assets.search import index_assets, index_checks
    from resources.kafka import KafkaResource
    from resources.lanes import LaneResource
    from resources.opensearch import OpenSearchResource
    from resources.timescale import TimescaleResource
    from sensors.alerts import failure_alerts
    from sensors.lag import lag_sensor
    from sensors.schedules import hourly_checks

    chains = load_chains(settings().chains_file)
    ingest, checks = ingest_jobs(chains.values()), check_job(chains.values())
    return {
        "assets": [
            *topic_specs(chains.values()),
            *(ingestion_asset(chain) for chain in chains.values()),
            *index_assets(chains.values()),
        ],
        "asset_checks": [index_checks()],
        "jobs": [*ingest, checks, rebuild_job()],
        "schedules": [hourly_checks(checks)],
        "sensors": [lag_sensor(chains, ingest), failure_alerts()],
        "resources": {
            "kafka": KafkaResource(),
            "timescale": TimescaleResource(),
            "lanes": LaneResource(),
            "opensearch": OpenSearchResource(),
        },
    }


def _intelligence() -> dict[str, Any]:
    from assets.intelligence.engine import engine_asset, engine_job
    from assets.intelligence.models import ABOUT, drift_check, drift_job, model_assets, promotion_jobs, train_job
    from resources.engine import EngineResource
    from resources.kafka import KafkaResource
    from resources.models import ModelsResource
    from resources.timescale import TimescaleResource
    from sensors.anomalies import anomaly_sensor
    from sensors.schedules import daily_drift, weekly_training
    from sensors.training import training_sensor

    engine, drift, training = engine_job(), drift_job(ABOUT), [train_job(model) for model in ABOUT]
    return {
        "assets": [engine_asset(ABOUT), *(asset for model in ABOUT for asset in model_assets(model))],
        "asset_checks": [drift_check(model) for model in ABOUT],
        "jobs": [engine, drift, *training, *promotion_jobs()],
        "schedules": [daily_drift(drift), *(weekly_training(job) for job in training)],
        "sensors": [anomaly_sensor(engine), training_sensor(ABOUT, training)],
        "resources": {
            "engine": EngineResource(),
            "kafka": KafkaResource(),
            "models": ModelsResource(),
            "timescale": TimescaleResource(),
        },
    }


def _lifecycle() -> dict[str, Any]:
    from assets.lifecycle import archive, backups, housekeeping, other_backups
    from resources.archive import ArchiveResource
    from resources.backups import BackupsResource
    from resources.housekeeping import HousekeepingResource
    from resources.other_backups import OtherBackupsResource
    from sensors import schedules
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
    ]
    return {
        "assets": [
            *map(archive.archive_asset, chains),
            *map(archive.derived_asset, chains),
            archive.compaction_asset(),
            archive.sizes_asset(),
            *backups.backup_assets(),
            *other_backups.other_backup_assets(),
            *housekeeping.housekeeping_assets(),
        ],
        "asset_checks": [check for chain in chains for check in archive.archive_checks(chain)]
        + [backups.waiting_check()],
        "jobs": [*days, *archive.derive_jobs(chains), *(job for job, _ in clocked)],
        "schedules": [schedule(job) for job, schedule in clocked],
        "sensors": [retention_sensor(chains, days)],
        "resources": {
            "archive": ArchiveResource(),
            "backups": BackupsResource(),
            "housekeeping": HousekeepingResource(),
            "other_backups": OtherBackupsResource(),
        },
    }


def _marts() -> dict[str, Any]:
    from assets.keys import ANALYTICS
    from assets.marts.views import view_assets, view_job
    from resources.dbt import DbtResource, load_manifest
    from resources.timescale import TimescaleResource
    from sensors.views import views_sensor

    views = view_assets(load_manifest(), load_chains(settings().chains_file))
    job = view_job()
    return {
        "assets": [views],
        "jobs": [job],
        "sensors": [views_sensor(job, [f"{ANALYTICS}.{key.path[-1]}" for key in sorted(views.keys)])],
        "resources": {"dbt": DbtResource(), "timescale": TimescaleResource()},
    }


_LOCATIONS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "ingestion": _ingestion,
    "intelligence": _intelligence,
    "lifecycle": _lifecycle,
    "marts": _marts,
}
