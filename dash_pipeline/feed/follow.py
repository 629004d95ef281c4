"""A node -> Kafka: the exporter's batches, published whole, through reorgs and restarts.

Belongs here: where to start, what has been published of which branch, when to start again and from where.
Does not belong here: the exporter's process (`exporter.py`), talking to the node (`node.py`).

ethereum-etl follows heights, not hashes: after a reorg it goes on at the next height, on another branch. So
this keeps a trail, the hashes of the blocks it has published, and
- does not publish a batch whose first parent is not the end of the trail,
- asks the node every second whether the end of the trail is still its block at that height (a reorg may keep
  the height, or shorten it).
Either way the exporter is started again behind the last block that trail and node have in common, and the new
branch is published whole. The orphaned one stays in Kafka, as with any exporter; the platform sorts it out.
"""

from __future__ import annotations

import bisect
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed.exporter import Exporter
from dash_pipeline.feed.files import Event
from dash_pipeline.feed.node import check_chain, hash_at, head_of
from dash_pipeline.feed.publish import Key, Sink, publish

# More than the deepest reorg that the platform accepts.
TRAIL_BLOCKS = 512
CHECK_S = 1.0


# --- what has been published

# Number, hash, hash of the parent.
Link = tuple[int, str, str]


class Trail(msgspec.Struct):
    """The newest blocks in Kafka, as number -> hash: one branch without holes that ends before `next`.

    `first` is the first block ever published; what lies more than TRAIL_BLOCKS behind is forgotten.
    """

    first: int
    next: int
    hashes: dict[int, str] = {}

    @classmethod
    def starting_at(cls, number: int) -> Trail:
        """Nothing is published yet; block `number` is to be the first."""
        return cls(first=number, next=number)

    def fits(self, links: Iterable[Link]) -> bool:
        """Whether the blocks go on where the trail ends, each on the one before."""
        known = dict(self.hashes)
        for number, hash_, parent in links:
            if known.get(number - 1, parent) != parent:
                return False
            known[number] = hash_
        return True

    def extend(self, links: Iterable[Link]) -> None:
        """Add blocks that fit."""
        for number, hash_, _ in links:
            self.hashes[number] = hash_
            self.next = number + 1
        for number in [number for number in self.hashes if number < self.next - TRAIL_BLOCKS]:
            del self.hashes[number]

    def cut(self, number: int) -> None:
        """Forget the blocks from `number` on: they are to be published again."""
        self.hashes = {known: hash_ for known, hash_ in self.hashes.items() if known < number}
        self.next = number


def first_orphan(trail: Trail, hash_at: Callable[[int], str | None]) -> int:
    """The first block of the trail that is not the node's; `trail.next` when all of them are.

    Raises DashError when it lies before what the trail remembers, or the node holds another chain.
    """
    numbers = sorted(trail.hashes)
    orphan = bisect.bisect(numbers, 0, key=lambda number: int(hash_at(number) != trail.hashes[number]))
    if orphan == len(numbers):
        return trail.next
    if orphan > 0 or numbers[0] == trail.first > 0:
        return numbers[orphan]
    raise DashError(
        f"none of the last {len(numbers)} published blocks ({numbers[0]}..{numbers[-1]}) is the node's: "
        "it holds another chain, or a fork deeper than that; `--from-block N` starts anew"
    )


def trail_file(folder: Path, chain: str, node: str) -> Path:
    """Where the trail is kept. The node's address is hashed: it may hold a key."""
    return folder / "feed" / f"{chain}-{hashlib.sha256(node.encode()).hexdigest()[:12]}.json"


def load_trail(file: Path) -> Trail | None:
    """The trail as of the last flush, None when there is none. Raises DashError when the file is damaged."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Trail)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DashError(f"{file}: {error}; remove it, and give --from-block") from None


def save_trail(file: Path, trail: Trail) -> None:
    """Replace the file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(trail))
    new.replace(file)


# --- following


@dataclass
class Followed:
    """What has been done so far: messages by type, the height, and the reorgs as (first block, depth)."""

    sent: Counter[str] = field(default_factory=Counter)
    last_block: int = -1
    reorgs: list[tuple[int, int]] = field(default_factory=list)


class Follower:
    """Publishes a node's blocks, from where the last run ended, and keeps the trail.

    `start_exporter` is given the first block of a run. `stop` is asked between batches; `tell` hears of each.
    Raises Unavailable when the node, or the exporter, gets nowhere for `patience_s` seconds.
    """

    def __init__(
        self,
        node: str,
        chain: Chain,
        sink: Sink,
        start_exporter: Callable[[int], Exporter],
        file: Path,
        *,
        key: Key = Key.NONE,
        patience_s: float = 60,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[Followed], None] = lambda _: None,
    ) -> None:
        self._node = node
        self._chain = chain
        self._sink = sink
        self._start_exporter = start_exporter
        self._file = file
        self._key = key
        self._patience_s = patience_s
        self._stop = stop
        self._tell = tell
        self._followed = Followed()
        self._trail = Trail.starting_at(0)

    def run(self, *, from_block: int | None = None, once: bool = False) -> Followed:
        """Follow until told to stop; with `once`, until the height that the node has now.

        Begins at `from_block`, else behind the trail that the last run left, else at block 0.
        """
        check_chain(self._node, self._chain)
        if from_block is not None:
            self._trail = Trail.starting_at(from_block)
        else:
            self._trail = load_trail(self._file) or self._trail
        target = head_of(self._node) if once else None
        self._step_back()
        while not self._done(target):
            with self._start_exporter(self._trail.next) as exporter:
                self._pump(exporter, target)
            if not self._stop():
                self._step_back()
        return self._followed

    def _done(self, target: int | None) -> bool:
        return self._stop() or (target is not None and self._trail.next > target)

    def _step_back(self) -> None:
        """Behind the last block that the trail and the node have in common."""
        orphan = self._patiently(lambda: first_orphan(self._trail, lambda number: hash_at(self._node, number)))
        if orphan < self._trail.next:
            self._followed.reorgs.append((orphan, self._trail.next - orphan))
            self._trail.cut(orphan)

    def _patiently(self, ask: Callable[[], int]) -> int:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return ask()
            except Unavailable:
                if self._stop() or time.monotonic() > deadline:
                    raise
                time.sleep(CHECK_S)

    def _pump(self, exporter: Exporter, target: int | None) -> None:
        """Publish batch after batch, until the end or until the trail is no longer the node's branch."""
        moving_at = time.monotonic()
        while not self._done(target):
            batch = exporter.next_batch(CHECK_S)
            if batch and not self._publish(batch):
                return
            try:
                if self._has_moved():
                    return
                idle = head_of(self._node) < self._trail.next
                trouble = exporter.last_words()
            except Unavailable as error:
                idle, trouble = False, str(error)
            if batch or idle:
                moving_at = time.monotonic()
            elif trouble and time.monotonic() - moving_at > self._patience_s:
                raise Unavailable(f"no new block for {self._patience_s:g} s: {trouble}")

    def _publish(self, batch: Sequence[Event]) -> bool:
        """Publish a batch that fits the trail, and remember it; False when it does not fit."""
        blocks = [message for message, _ in batch if message.type == "block"]
        links = [(block.number, block.hash, block.parent_hash) for block in blocks]
        if not self._trail.fits(links):
            return False
        self._followed.sent += publish(batch, self._chain.name, self._sink, self._key)
        self._trail.extend(links)
        save_trail(self._file, self._trail)
        self._followed.last_block = self._trail.next - 1
        self._tell(self._followed)
        return True

    def _has_moved(self) -> bool:
        last = self._trail.next - 1
        known = self._trail.hashes.get(last)
        return known is not None and hash_at(self._node, last) != known
