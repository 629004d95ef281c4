"""The warm loop as assets see it, and what SIGTERM means to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource, DagsterInstance
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.microbatch.drain import Checkpoint, Limits
    from dash_pipeline.microbatch.lanes import Lane


class LaneResource(ConfigurableResource[Any]):
    """Drains a lane's partitions into tables and indexes; see `dash_pipeline.microbatch.drain`."""

    def drain(self, lane: Lane, limits: Limits, run_id: str, on_checkpoint: Callable[[Checkpoint], None]) -> Checkpoint:
        """Ingest until the lane is idle, its time is up, another run took over, or, inside `finishing`, the process is
        asked to leave; returns the totals of the whole drain."""
        from dash_pipeline.microbatch.drain import drain

        return drain(settings(), lane, limits, run_id, on_checkpoint, check_captured_interrupt)


@contextmanager
def finishing(instance: DagsterInstance, run_id: str) -> Iterator[Callable[[], bool]]:
    """A block that SIGTERM and SIGINT do not tear out of its work; it is handed a function that says whether one came.

    After the block a run that a person has terminated, or Dagster has given up, is interrupted all the same. One whose
    pod merely had to leave goes on to its end. Outside of the main thread, where there are no signals, nothing is held.
    """
    with capture_interrupts():
        yield check_captured_interrupt
        asked = check_captured_interrupt()
    if asked:
        run = instance.get_run_by_id(run_id)
        if run is None or run.status is not DagsterRunStatus.STARTED:
            raise DagsterExecutionInterruptedError
