"""The assets of other backups and of housekeeping on real servers: what they show, and how they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from dagster import AssetKey, ExecuteInProcessResult, materialize
from dagster._core.test_utils import instance_for_test

from assets.lifecycle.housekeeping import housekeeping_assets
from assets.lifecycle.other_backups import other_backup_assets
from dash_pipeline.backups import search as backups
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import s3, search
from dash_pipeline.storage.migrate import upgrade
from resources.housekeeping import HousekeepingResource
from resources.other_backups import OtherBackupsResource


@pytest.fixture
def mine(fresh_database: Settings, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A database and a bucket of the test's own, with a chain's empty indexes; the resources use them."""
    upgrade(fresh_database)
    settings = fresh_database.model_copy(update={"s3_bucket": unique("assets")})
    chain = unique("c")
    store = s3.bucket(settings)
    store.client.create_bucket(Bucket=store.name)
    search.ensure(settings, [chain])
    monkeypatch.setattr("resources.other_backups.settings", lambda: settings)
    monkeypatch.setattr("resources.housekeeping.settings", lambda: settings)
    yield settings
    search.delete(search.client(settings), chain)
    search.client(settings).snapshot.delete_repository(repository=backups.REPOSITORY, params={"ignore": 404})
    store.delete(store.keys(""))
    store.client.delete_bucket(Bucket=store.name)


def made(stack: Stack, *names: str, raises: bool = True) -> ExecuteInProcessResult:
    """Materialise these assets, Dagster's records being in a database as in the stack."""
    resources = {"other_backups": OtherBackupsResource(), "housekeeping": HousekeepingResource()}
    with stack.scratch_database() as settings:
        dsn = settings.timescale_dsn.get_secret_value()
        with instance_for_test(overrides={"storage": {"postgres": {"postgres_url": dsn}}}) as instance:
            return materialize(
                [*other_backup_assets(), *housekeeping_assets([])],
                selection=[AssetKey(name.split("/")) for name in names],
                instance=instance,
                resources=resources,
                raise_on_error=raises,
            )


def shown(result: ExecuteInProcessResult, name: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(name.replace("/", "__"))
    return {label: value.value for label, value in event.metadata.items()}


def test_backups_and_drill(mine: Settings, stack: Stack) -> None:
    done = made(stack, "backups/search", "backups/kafka", "backups/search_drill")
    found = shown(done, "backups/search")
    assert found["snapshot"] == backups.snapshots(mine)[0].name
    assert (found["written to meanwhile"], found["snapshots deleted"]) == ([], 0)
    assert found["indexes"] >= 3
    assert set(shown(done, "backups/kafka")) > {"topics", "consumer groups"}
    drilled = shown(done, "backups/search_drill")
    assert drilled["snapshot"] == found["snapshot"]
    assert drilled["RTO, s"] > 0


def test_a_difference_fails_the_drill_loudly(mine: Settings, stack: Stack) -> None:
    taken = backups.snapshot(mine)
    wrong = tuple(replace(one, documents=one.documents + 1) for one in taken.indexes)
    key = f"backups/search/manifests/{taken.name}.json"
    s3.bucket(mine).put(key, msgspec.json.encode(replace(taken, indexes=wrong)))
    done = made(stack, "backups/search_drill", raises=False)
    assert not done.success
    (event,) = [event for event in done.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert f"{len(wrong)} differences: " in (failure.description or "")
    assert wrong[0].name in str(failure.metadata["differences"].value)


def test_housekeeping(mine: Settings, stack: Stack) -> None:
    names = [key.path[-1] for one in housekeeping_assets([]) for key in one.keys]
    done = made(stack, *(f"housekeeping/{name}" for name in names))
    assert done.success
    assert shown(done, "housekeeping/search_documents")["documents deleted"] == 0
    assert shown(done, "housekeeping/uploads")["uploads ended"] == 0
    assert shown(done, "housekeeping/staging_tables")["tables dropped"] == 0
    assert shown(done, "housekeeping/dagster_records")["runs deleted"] == 0
    assert shown(done, "housekeeping/orphaned_rows")["rows deleted"] == 0
    assert shown(done, "housekeeping/rollups") == {
        "wallet_prefixes deleted": 0, "pool_candles deleted": 0, "pool_minutes deleted": 0,
    }  # fmt: skip
    off = "compression: off; DASH_COMPRESS_AFTER_DAYS turns it on"
    assert shown(done, "housekeeping/compression") == {"chunks compressed": 0, "note": off}


def test_a_server_without_compression_says_so(mine: Settings, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the tests is built under the Apache licence."""
    monkeypatch.setattr("resources.housekeeping.settings", lambda: mine.model_copy(update={"compress_after_days": 1.0}))
    done = made(stack, "housekeeping/compression")
    none = "compression: none, because the server's licence is 'apache'; only `timescale` has it"
    assert shown(done, "housekeeping/compression") == {"chunks compressed": 0, "note": none}


def test_a_server_that_is_away_fails_one_sweep_and_no_other(
    mine: Settings, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = mine.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"})
    monkeypatch.setattr("resources.housekeeping.settings", lambda: away)
    done = made(stack, "housekeeping/uploads", "housekeeping/staging_tables", raises=False)
    assert not done.success
    assert shown(done, "housekeeping/staging_tables")["tables dropped"] == 0
    (event,) = [event for event in done.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert "no connection to http://127.0.0.1:1" in (failure.description or "")
