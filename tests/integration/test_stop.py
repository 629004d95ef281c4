"""A lane that is asked to leave, by a signal to a real run's process, and by the function that the core looks at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from dash_pipeline import settings as settings_module
from dash_pipeline.definitions import build_defs
from dash_pipeline.microbatch.drain import Limits, drain
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from tests.chain import branch
from tests.environment import put_in_environment
from tests.lane import PATIENCE_S, SMALL, Background, Market, new_market, wait_for, whole

ROOT = Path(__file__).parents[2]
BLOCKS = 600
STOP_WITHIN_S = 8.0


@pytest.fixture
def market(migrated: Settings, unique: Callable[[str], str]) -> Market:
    return new_market(migrated, unique("c"))


@pytest.fixture
def instance(market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """Dagster's, of files, and an environment in which a run of it finds the test's servers and chain."""
    chains = tmp_path / "chains.toml"
    chains.write_text(f'[{market.chain}]\ntitle = "Test"\nchain_id = 1\nblock_time_s = 1.0\n')
    values = market.settings.model_copy(update={"chains_file": chains, "stop_within_s": STOP_WITHIN_S})
    put_in_environment(values, monkeypatch)
    monkeypatch.setenv("DASH_STACK_DIR", str(tmp_path / "stack"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    settings_module.settings.cache_clear()
    with DagsterInstance.get() as instance:
        yield instance
    settings_module.settings.cache_clear()


def launch(instance: DagsterInstance, market: Market) -> tuple[str, subprocess.Popen[bytes]]:
    """A run of the market's lane, as Dagster's launchers start it: a process `dagster api execute_run`."""
    name = f"ingest_{market.chain}"
    code = ReconstructableRepository.for_module("dash_pipeline.locations.ingestion", "defs", str(ROOT))
    job = code.get_reconstructable_job(name)
    config = {"idle_timeout_s": PATIENCE_S, "batch_rows": 40, "checkpoint_s": 1}
    run = instance.create_run_for_job(
        build_defs("ingestion").resolve_job_def(name),  # of this test's chain; a module is loaded once
        run_config={"ops": {f"drain_{market.chain}": {"config": config}}},
        job_code_origin=job.get_python_origin(),
    )
    given = serialize_value(
        ExecuteRunArgs(job.get_python_origin(), run.run_id, instance.get_ref(), set_exit_code_on_failure=True)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "dagster", "api", "execute_run", given], env=environment)
    return run.run_id, process


def the_run(instance: DagsterInstance, run_id: str) -> DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def leave(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM; the exit code, in time."""
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code = process.wait(PATIENCE_S)
    assert time.monotonic() - began < STOP_WITHIN_S + 5
    return code


def test_sigterm_under_load_ends_the_run_in_good_order(market: Market, instance: DagsterInstance) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    run_id, process = launch(instance, market)
    try:
        wait_for(lambda: market.counts()["logs"] > 0, "it has begun")
        assert leave(process) == 0
    finally:
        process.kill()
    assert market.lag() > 0, "it was in the midst"
    assert the_run(instance, run_id).status is DagsterRunStatus.SUCCESS
    event = instance.get_latest_materialization_event(AssetKey([market.chain, "logs"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["ended early"].value == "asked to stop"
    market.drain(SMALL, "next")
    market.check(BLOCKS)


def test_a_run_that_a_person_terminates_is_cancelled(market: Market, instance: DagsterInstance) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    run_id, process = launch(instance, market)
    try:
        wait_for(lambda: market.counts()["logs"] > 0, "it has begun")
        instance.report_run_canceling(the_run(instance, run_id))
        leave(process)
    finally:
        process.kill()
    assert the_run(instance, run_id).status is DagsterRunStatus.CANCELED
    market.drain(SMALL, "next")
    market.check(BLOCKS)


def test_sigterm_ends_an_idle_run_at_once(market: Market, instance: DagsterInstance) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    run_id, process = launch(instance, market)
    try:
        wait_for(lambda: market.lag() == 0, "all is read")
        assert leave(process) == 0
    finally:
        process.kill()
    assert the_run(instance, run_id).status is DagsterRunStatus.SUCCESS
    market.check(5)


def stopped(market: Market, when: Callable[[], bool], what: str) -> tuple[Background, float]:
    """A drain that is asked to stop then; how long it took to end."""
    stop = threading.Event()
    values = market.settings.model_copy(update={"stop_within_s": STOP_WITHIN_S})
    limits = Limits(idle_timeout_s=PATIENCE_S, batch_rows=40)
    run = Background(lambda: drain(values, market.lane(), limits, "run", stop=stop.is_set))
    wait_for(when, what)
    stop.set()
    began = time.monotonic()
    run.join()
    return run, time.monotonic() - began


@pytest.mark.parametrize(
    "server", ["timescale", *(pytest.param(name, marks=pytest.mark.patient) for name in ("opensearch", "kafka"))]
)
def test_a_server_that_is_away_does_not_hold_it_up(market: Market, stack: Stack, server: str) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))

    def begun_and_gone() -> bool:
        if market.counts()["logs"] == 0:
            return False
        stack.kill(server) if server == "kafka" else stack.stop(server)
        return True

    try:
        run, seconds = stopped(market, begun_and_gone, "it has begun")
    finally:
        if stack.supervisor.state(server).pid is None:
            stack.start(server)
        stack.wait_ready(server)
    assert run.error is None
    assert run.result is not None
    assert run.result.ended_early == "asked to stop"
    assert seconds < STOP_WITHIN_S + 5
    market.drain(SMALL, "next")
    market.check(BLOCKS)
