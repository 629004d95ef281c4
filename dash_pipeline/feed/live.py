"""A node -> Kafka, from the command line: everything `follow.py` needs, put together.

Belongs here: the exporter's program, the trail's place, signals. Does not belong here: following (`follow.py`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import msgspec

from dash_pipeline import topics
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.feed.exporter import Exporter, ensure_exporter
from dash_pipeline.feed.follow import Followed, Follower, trail_file
from dash_pipeline.feed.publish import LINGER_MS_AT_A_RATE, KafkaSink, Key
from dash_pipeline.feed.replay import Report, report_of
from dash_pipeline.settings import Settings, stack_dir

ENTITIES = ("block", "transaction", "log", "token_transfer")


class LiveReport(Report, frozen=True, kw_only=True):
    """What was published from a node; reorgs are (first block of the new branch, blocks orphaned)."""

    last_block: int
    reorgs: list[tuple[int, int]]


def live(
    settings: Settings,
    node: str,
    chain: Chain,
    *,
    entities: Sequence[str] = ENTITIES,
    from_block: int | None = None,
    once: bool = False,
    key: Key = Key.NONE,
    tell: Callable[[Followed], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> LiveReport:
    """Publish a node's blocks to the topics of `chain` until SIGINT or SIGTERM, or (`once`) until its height now.

    Installs ethereum-etl if need be, and `say`s so. Continues behind what the last run published, unless `from_block`
    says otherwise. Raises DashError for a node of another chain, Unavailable when node, exporter or Kafka get nowhere.
    """
    check_entities(entities)
    start = time.monotonic()
    program = ensure_exporter(say)
    topics.ensure(settings, [chain.name])
    with KafkaSink(settings, linger_ms=LINGER_MS_AT_A_RATE) as sink, _asked_to_stop() as stop:
        follower = Follower(
            node,
            chain,
            sink,
            lambda number: Exporter(program, node, number, entities),
            trail_file(stack_dir(), chain.name, node),
            key=key,
            patience_s=settings.retry_for_s,
            stop=stop,
            tell=tell,
        )
        followed = follower.run(from_block=from_block, once=once)
    report = report_of(chain.name, followed.sent, time.monotonic() - start)
    return LiveReport(**msgspec.structs.asdict(report), last_block=followed.last_block, reorgs=followed.reorgs)


def check_entities(entities: Sequence[str]) -> None:
    """Raises DashError when the exporter, or the trail, could do nothing with them."""
    if unknown := sorted(set(entities) - set(topics.TYPES)):
        raise DashError(f"--entities: unknown {', '.join(unknown)} (known: {', '.join(topics.TYPES)})")
    if "block" not in entities:
        raise DashError("--entities: block is needed, reorgs show in nothing else")


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM asks to stop after the batch at hand; a second one does what it always did."""
    asked = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
