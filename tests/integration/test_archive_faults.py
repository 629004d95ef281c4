"""S3 down, full, slow, cut or lying while days are archived: nothing is dropped, and the next run goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import polars as pl
import pytest

from dash_pipeline.archive import manifest
from dash_pipeline.archive.manifest import midnight
from dash_pipeline.archive.retain import retain
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage import history as storage_history
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.tables import TOKEN_TRANSFERS
from tests.days import FIRST, assert_once, day_rows, hot, insert, set_tip
from tests.faults import Fault, faulty


@pytest.fixture
def rows(conn: db.Connection, chain: str) -> list[pl.DataFrame]:
    """Four days, all beyond the retention."""
    rng = random.Random(1)
    made = [day_rows(rng, TOKEN_TRANSFERS, chain, day, 200) for day in range(4)]
    insert(conn, TOKEN_TRANSFERS, *made)
    set_tip(conn, chain, midnight(FIRST) + timedelta(days=11.1))
    return made


FAULTS: dict[str, Callable[[Fault, str], None]] = {
    "down": lambda fault, chain: fault.down(),
    "full": lambda fault, chain: fault.full(),
    "corrupts what is read": lambda fault, chain: fault.corrupt(f"chain={chain}"),
    "corrupts what is written": lambda fault, chain: fault.corrupt_writes(f"chain={chain}"),
    "ends in the middle": lambda fault, chain: fault.cut(f"chain={chain}", 1000),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_drops_nothing_and_the_next_run_goes_on(
    conn: db.Connection, migrated: Settings, chain: str, rows: list[pl.DataFrame], name: str
) -> None:
    with faulty(migrated) as (through, fault):
        done: list[str] = []
        retain(through, "run", ["token_transfers"], days=[FIRST], done=lambda day, _: done.append(str(day.date)))
        assert done == [str(FIRST)]
        FAULTS[name](fault, chain)
        with pytest.raises(DashError) as error:
            retain(through, "run", ["token_transfers"])
        assert "\n" not in str(error.value)
        assert chain in str(error.value)
        assert hot(conn, TOKEN_TRANSFERS, chain) == 600
        assert len(manifest.entries(conn, chain=chain)) == 1
        assert_once(migrated, TOKEN_TRANSFERS, rows)
        fault.fine()
        assert retain(through, "run", ["token_transfers"]) == 600
        assert_once(through, TOKEN_TRANSFERS, rows)


def test_a_slow_store_is_waited_for(
    conn: db.Connection, migrated: Settings, chain: str, rows: list[pl.DataFrame]
) -> None:
    with faulty(migrated) as (through, fault):
        fault.slow(0.3)
        assert retain(through, "run", ["token_transfers"]) == 800
    assert_once(migrated, TOKEN_TRANSFERS, rows)


def test_a_store_that_says_nothing_is_given_up(
    conn: db.Connection, migrated: Settings, chain: str, rows: list[pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    retain(migrated, "run", ["token_transfers"])
    monkeypatch.setattr(storage_history, "_READ_S", 0.5)
    with faulty(migrated) as (through, fault):
        fault.slow(5)
        with pytest.raises(
            DashError, match=r"^archive: token_transfers: objects cannot be read: nothing came for [01] s"
        ):
            collect(history(through, "token_transfers").filter(pl.col("chain") == chain))
    assert_once(migrated, TOKEN_TRANSFERS, rows)


def test_history_reads_the_objects_that_a_filter_leaves_and_no_others(
    conn: db.Connection, migrated: Settings, chain: str, rows: list[pl.DataFrame]
) -> None:
    retain(migrated, "run", ["token_transfers"])
    with faulty(migrated) as (through, fault):
        after = midnight(FIRST) + timedelta(days=3)
        found = collect(
            history(through, "token_transfers").filter((pl.col("chain") == chain) & (pl.col("ts") >= after))
        )
        assert found.height == 200
        assert {request.path.split("date=")[1][:10] for request in fault.requests} == {str(FIRST + timedelta(days=3))}
        fault.down()
        with pytest.raises(DashError, match="cannot be read"):
            collect(history(through, "token_transfers").filter(pl.col("chain") == chain))
