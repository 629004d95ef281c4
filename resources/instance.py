"""What Dagster remembers, pruned: it has no retention of its own for runs and events.

Belongs here: which of its records go. Does not belong here: when (`sensors/schedules.py`), ticks of sensors that still
run, which the instance's own `retention` clears earlier.

`DagsterInstance.delete_run` takes a run's events with it, materialisations too: an asset's partition whose run is old
would be missing from one day to the next. So events are deleted here, by the storages' own tables, and the newest
materialisation and observation of each asset and partition stay for ever, without their run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster import DagsterInstance

# Runs of a transaction: what a webserver waits for at most when it looks at one of them.
_RUNS_AT_ONCE = 50
_ROWS_AT_ONCE = 5_000


@dataclass(frozen=True)
class Pruned:
    """How many records of each kind were deleted."""

    runs: int
    events: int
    checks: int
    ticks: int


def prune(instance: DagsterInstance, keep: timedelta) -> Pruned:
    """Delete runs that ended longer ago, with their logs, events, checks' results and ticks of that age.

    Stays, however old: runs that have not ended or belong to a backfill that has not, the newest materialisation and
    observation of each asset and partition, the newest result of each check, the newest tick of each sensor and
    schedule. Killed in the midst, the next call goes on. The storages must be SQL databases of one file or server.
    """
    before = datetime.now(UTC) - keep
    newest = _newest_events(instance)
    runs = events = 0
    for some in _slices(_old_runs(instance, before), _RUNS_AT_ONCE):
        events += _delete_events(instance, some, newest)
        for run in some:
            instance.compute_log_manager.delete_logs(prefix=[run])
        runs += _delete_runs(instance, some)
    events += _delete_superseded(instance, before, newest)
    return Pruned(runs, events, _delete_checks(instance, before), _delete_ticks(instance, before))


def _old_runs(instance: DagsterInstance, before: datetime) -> list[str]:
    import sqlalchemy as sa
    from dagster import DagsterRunStatus
    from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES
    from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
    from dagster._core.storage.tags import BACKFILL_ID_TAG

    runs, tags = RunsTable.c, RunTagsTable.c
    ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    active = [one.backfill_id for one in instance.get_backfills() if one.status not in BULK_ACTION_TERMINAL_STATUSES]
    # A run that was cancelled in the queue has no end.
    ended_before = sa.or_(
        runs.end_time < before.timestamp(),
        sa.and_(runs.end_time.is_(None), runs.update_timestamp < before.replace(tzinfo=None)),
    )
    in_backfill = sa.select(tags.run_id).where(tags.key == BACKFILL_ID_TAG, tags.value.in_(active))
    query = sa.select(runs.run_id).where(
        runs.status.in_([status.value for status in ended]), ended_before, runs.run_id.not_in(in_backfill)
    )
    with _connection(instance.run_storage) as conn:
        return [run for (run,) in conn.execute(query.order_by(runs.id))]


def _delete_runs(instance: DagsterInstance, runs: Sequence[str]) -> int:
    """Delete the runs themselves, with their tags."""
    from dagster._core.storage.runs.schema import RunsTable

    # Not one by one by the storage's own method: each would be a transaction.
    with _connection(instance.run_storage) as conn:
        return int(conn.execute(RunsTable.delete().where(RunsTable.c.run_id.in_(runs))).rowcount)


def _newest_events(instance: DagsterInstance) -> set[int]:
    """The newest materialisation and the newest observation of each asset and partition."""
    import sqlalchemy as sa

    events = _events().c
    query = (
        sa.select(sa.func.max(events.id))
        .where(events.asset_key.is_not(None), events.dagster_event_type.in_(_kept_types()))
        .group_by(events.asset_key, events.partition, events.dagster_event_type)
    )
    with _event_connection(instance) as conn:
        return {id_ for (id_,) in conn.execute(query)}


def _delete_events(instance: DagsterInstance, runs: Sequence[str], newest: Collection[int]) -> int:
    """Delete these runs' events but for the newest."""
    import sqlalchemy as sa

    events = _events().c
    of_assets = sa.select(events.id).where(events.run_id.in_(runs), events.dagster_event_type.in_(_kept_types()))
    with _event_connection(instance) as conn:
        ids = {id_ for (id_,) in conn.execute(of_assets)}
        kept = sorted(ids & set(newest))
        _delete_tags(conn, sorted(ids - set(newest)))
        deleted = conn.execute(_events().delete().where(events.run_id.in_(runs), events.id.not_in(kept)))
        return int(deleted.rowcount)


def _delete_superseded(instance: DagsterInstance, before: datetime, newest: Collection[int]) -> int:
    """Delete events that outlived their run as the newest ones and are not the newest any more."""
    import sqlalchemy as sa
    from dagster._core.storage.runs.schema import RunsTable

    events = _events().c
    query = sa.select(events.id, events.run_id).where(
        events.asset_key.is_not(None),
        events.dagster_event_type.in_(_kept_types()),
        events.timestamp < before.replace(tzinfo=None),
    )
    with _event_connection(instance) as conn:
        old = [(id_, run) for id_, run in conn.execute(query) if id_ not in newest]
    with _connection(instance.run_storage) as conn:
        there = {run for (run,) in conn.execute(sa.select(RunsTable.c.run_id))}
    ids = [id_ for id_, run in old if run not in there]
    for some in _slices(ids, _ROWS_AT_ONCE):
        with _event_connection(instance) as conn:
            _delete_tags(conn, some)
            conn.execute(_events().delete().where(events.id.in_(some)))
    return len(ids)


def _delete_tags(conn: Any, ids: Sequence[int]) -> None:
    from dagster._core.storage.event_log.schema import AssetEventTagsTable

    for some in _slices(ids, _ROWS_AT_ONCE):
        conn.execute(AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(some)))


def _delete_checks(instance: DagsterInstance, before: datetime) -> int:
    """Delete results of checks; a check's newest result stays, and the newest one that says how it went."""
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

    checks = AssetCheckExecutionsTable.c
    newest = sa.select(sa.func.max(checks.id)).group_by(checks.asset_key, checks.check_name, checks.partition)
    query = AssetCheckExecutionsTable.delete().where(
        checks.create_timestamp < before.replace(tzinfo=None),
        checks.id.not_in(newest),
        checks.id.not_in(newest.where(checks.execution_status.in_(["SUCCEEDED", "FAILED"]))),
    )
    with _event_connection(instance) as conn:
        return int(conn.execute(query).rowcount)


def _delete_ticks(instance: DagsterInstance, before: datetime) -> int:
    """Delete ticks, also those of sensors and schedules that are gone; the newest of each stays."""
    import sqlalchemy as sa
    from dagster._core.storage.schedules.schema import JobTickTable

    ticks = JobTickTable.c
    newest = sa.select(sa.func.max(ticks.id)).group_by(ticks.selector_id)
    query = JobTickTable.delete().where(ticks.timestamp < before.replace(tzinfo=None), ticks.id.not_in(newest))
    with _connection(instance.schedule_storage) as conn:
        return int(conn.execute(query).rowcount)


def _events() -> Any:
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    return SqlEventLogStorageTable


def _kept_types() -> list[str]:
    return ["ASSET_MATERIALIZATION", "ASSET_OBSERVATION"]


def _event_connection(instance: DagsterInstance) -> Any:
    storage: Any = instance.event_log_storage
    return storage.index_connection()


def _connection(storage: Any) -> Any:
    return storage.connect()


def _slices(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
