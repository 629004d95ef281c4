"""Fork choice: which blocks are canonical, given every block heard of.

Belongs here: the decision, as a pure function of known blocks and arriving blocks. Does not belong here: moving rows.

The exporter's latest word is the truth: of two branches, the one whose block was produced to Kafka last is canonical,
and below that block's descendants the same holds again. "Last" is the record's own time, not the order in which
partitions happen to be read, so once all blocks are there the outcome does not depend on that order. A block that fits
its neighbours, or fills a gap, contradicts nothing and is simply canonical.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType


class Status(StrEnum):
    """Where a block stands. Rows of the first two are in the canonical tables, rows of the others are kept aside."""

    PROVISIONAL = "provisional"  # its rows have arrived, the block itself has not, and no other block holds its height
    CANONICAL = "canonical"
    ORPHANED = "orphaned"  # on a known branch that lost
    DETACHED = "detached"  # contradicts the canonical chain, and its own parent is not known yet
    REFUSED = "refused"  # another chain's block, or a fork deeper than is taken
    UNSEEN = "unseen"  # its rows have arrived, the block itself has not, and another block holds its height


IN_TABLES = frozenset({Status.PROVISIONAL, Status.CANONICAL})


@dataclass(slots=True)
class Block:
    """A block heard of. `seen`: (milliseconds, offset) of the newest record that announced it; parent is None and seen
    is (0, 0) while only rows of it have arrived."""

    hash: bytes
    number: int
    parent: bytes | None
    seen: tuple[int, int]
    status: Status | None


@dataclass(frozen=True)
class Reorg:
    """Canonical blocks left the chain: `depth` blocks above the fork's height, at the old tip's side."""

    depth: int
    fork_number: int
    old_tip: Block
    new_tip: Block


@dataclass
class Outcome:
    """`standing`: where each arrival stands now. `changed`: blocks whose status is another than before, with the one
    before (None: first heard of). `refused`: blocks refused, each with the hash it contradicts and why. `reorg`: from
    the tip before to the tip now, if blocks left the chain. `finalised`: no fork may go below it from now on."""

    standing: dict[bytes, Status]
    changed: dict[bytes, tuple[Status | None, Status]]
    refused: dict[bytes, tuple[bytes | None, str]]
    reorg: Reorg | None
    tip: Block | None
    finalised: int


def follow(
    known: Mapping[bytes, Block],
    arrivals: Iterable[Block],
    *,
    tip_number: int | None,
    finalised: int,
    max_depth: int,
    genesis: bytes | None = None,
    foreign: Mapping[bytes, str] = MappingProxyType({}),
) -> Outcome:
    """Take `arrivals` into the tree of `known` blocks (which are changed in place).

    `known` must hold: the arrivals' hashes, every block at their heights and the heights beside them, and all blocks
    from `2 * max_depth` below the tip up. `tip_number` is the highest canonical height, None on an empty chain; no
    block at or below `finalised` can leave the chain. `genesis`: the hash of the chain's first block, where known.
    `foreign`: blocks that are not this chain's, with the reason (see `off_the_clock`); one that is stored stays.
    """
    tree = _Tree(dict(known), tip_number, finalised, max_depth, genesis, foreign)
    arrivals = sorted(arrivals, key=lambda b: (b.seen, b.number))
    for block in arrivals:
        tree.take(block)
    return tree.outcome({block.hash for block in arrivals}, tip_number)


def off_the_clock(number: int, at: datetime, tip_number: int, tip_at: datetime, pace_s: float) -> str | None:
    """Why a block that is far from the tip cannot be of the same chain: higher ones are later, by more than
    `pace_s` seconds a block. None where it can. Near the tip, a younger branch's block may well be later and lower."""
    blocks, seconds = number - tip_number, (at - tip_at).total_seconds()
    if seconds / blocks > pace_s:
        return None
    return f"another chain's block: {blocks:+,} blocks and {seconds:+,.0f} s from the tip"


class _Tree:
    """The blocks by hash and by height, and the canonical ones by height, while arrivals are taken one by one."""

    def __init__(
        self,
        blocks: dict[bytes, Block],
        tip: int | None,
        finalised: int,
        max_depth: int,
        genesis: bytes | None,
        foreign: Mapping[bytes, str],
    ) -> None:
        self.blocks = blocks
        self.before = {b.hash: b.status for b in blocks.values()}
        self.canonical = {b.number: b for b in blocks.values() if b.status is Status.CANONICAL}
        self.canonical_before = dict(self.canonical)
        self.heights: dict[int, list[Block]] = {}
        for block in blocks.values():
            self.heights.setdefault(block.number, []).append(block)
        self.tip = -1 if tip is None else tip
        self.finalised, self.max_depth, self.genesis, self.foreign = finalised, max_depth, genesis, foreign
        self.refused: dict[bytes, tuple[bytes | None, str]] = {}

    def take(self, arrival: Block) -> None:
        block = self.blocks.get(arrival.hash)
        if block is None:
            block = arrival
            block.status = None
            self.blocks[block.hash] = block
            self.heights.setdefault(block.number, []).append(block)
        block.parent = arrival.parent
        block.seen = max(block.seen, arrival.seen)
        if block.status is Status.CANONICAL:
            return
        if block.status is Status.REFUSED:
            block.status = None  # judged anew: what was missing may have come
        parent = self._parent(block)
        if parent is not None and parent.status is Status.REFUSED:
            self._refuse([block], "its parent was refused")
        elif block.number == 0 and self.genesis is not None and block.hash != self.genesis:
            self._refuse([block], "another chain's first block")
        elif block.hash in self.foreign:
            self._refuse([block], self.foreign[block.hash])
        elif self._fits(block, parent) and not self._has_waiting_child(block):
            block.status = Status.CANONICAL
            self.canonical[block.number] = block
            self.tip = max(self.tip, block.number)
        else:
            self._contend(block)
        self.finalised = max(self.finalised, self.tip - self.max_depth)

    def _parent(self, block: Block) -> Block | None:
        """The parent, if it was announced itself: of others the branch is not known."""
        parent = self.blocks.get(block.parent or b"")
        return parent if parent is not None and parent.parent is not None else None

    def _fits(self, block: Block, parent: Block | None) -> bool:
        """No canonical block is contradicted by this one and its ancestors being canonical."""
        below, above = self.canonical.get(block.number - 1), self.canonical.get(block.number + 1)
        return (
            block.number not in self.canonical
            and (parent is None or parent.status is Status.CANONICAL)
            and (below is None or below.hash == block.parent)
            and (above is None or above.parent == block.hash)
        )

    def _has_waiting_child(self, block: Block) -> bool:
        return any(
            child.parent == block.hash and child.status is not Status.CANONICAL
            for child in self.heights.get(block.number + 1, ())
        )

    def _contend(self, block: Block) -> None:
        """Decide anew which blocks are canonical above the fork from which the block's branch comes."""
        branch = [block]
        while (parent := self._parent(branch[-1])) is not None and parent.status is not Status.CANONICAL:
            branch.append(parent)
        root = branch[-1]
        # A branch without a parent right above a canonical block: the exporter did not tell of a reorg, and the block
        # below is known not to be the parent, and no more than that.
        fork = root.number - (2 if parent is None and root.number - 1 in self.canonical else 1)
        chosen = self._choose(fork)
        lost = [n for n, b in self.canonical.items() if n > fork and chosen.get(n) is not b]
        objection = self._objection(root, fork)
        if objection is not None and (lost or chosen.get(block.number) is not block):
            # One that was stored as a loser before, and is only announced again, stays one.
            self._refuse([b for b in branch if b.status is not Status.ORPHANED], objection)
            return
        for number in lost:
            self.canonical.pop(number).status = Status.ORPHANED
        for number, winner in chosen.items():
            self.canonical[number] = winner
            winner.status = Status.CANONICAL
        for loser in self._announced_above(fork):
            if loser.status not in (Status.CANONICAL, Status.ORPHANED):
                parent = self._parent(loser)
                known = parent is not None and parent.status in (Status.CANONICAL, Status.ORPHANED)
                loser.status = Status.ORPHANED if known else Status.DETACHED
        self.tip = max(self.canonical, default=-1)

    def _objection(self, root: Block, fork: int) -> str | None:
        """Why a branch that leaves the chain at this height is not taken."""
        depth = self.tip - fork
        first, second = self.canonical.get(0), self.canonical.get(1)
        if root.number == 0 and (first is not None or (second is not None and second.parent != root.hash)):
            return "another chain's first block"
        if depth > self.max_depth:
            return f"a fork {depth} blocks deep, at most {self.max_depth} are taken"
        if fork < self.finalised:
            return f"a fork below the finalised block {self.finalised}"
        return None

    def _announced_above(self, fork: int) -> list[Block]:
        """Every block above this height that may be canonical, lowest first."""
        heights = sorted(n for n in self.heights if n > fork)
        return [b for n in heights for b in self.heights[n] if b.parent is not None and b.status is not Status.REFUSED]

    def _choose(self, fork: int) -> dict[int, Block]:
        """The canonical blocks above the fork: from the newest block down, each with its ancestors, unless one of them
        contradicts what is chosen already."""
        candidates = self._connected(self._announced_above(fork))
        chosen: dict[int, Block] = {}
        out: set[bytes] = set()
        for block in sorted(candidates.values(), key=lambda b: (b.seen, b.number, b.hash), reverse=True):
            path: list[Block] = []
            at: Block | None = block
            while at is not None and at.hash in candidates and at.hash not in out and chosen.get(at.number) is not at:
                path.append(at)
                at = self._parent(at)
            if at is not None and at.hash in out:
                out.update(b.hash for b in path)
                continue
            for i, step in enumerate(reversed(path)):
                below, above = chosen.get(step.number - 1), chosen.get(step.number + 1)
                if (
                    step.number in chosen
                    or (below is not None and below.hash != step.parent)
                    or (above is not None and above.parent != step.hash)
                ):
                    out.update(b.hash for b in path[: len(path) - i])
                    break
            else:
                chosen.update((step.number, step) for step in path)
        return chosen

    def _connected(self, blocks: list[Block]) -> dict[bytes, Block]:
        """Those of `blocks` (lowest first) that come from a canonical block, or from nowhere without contradicting one
        in the middle of the chain: such may be another chain's."""
        roots: dict[bytes, Block] = {}
        for block in blocks:
            roots[block.hash] = roots.get(block.parent or b"", block)
        standing = {roots[b.hash].hash for b in blocks if b.status is Status.CANONICAL}
        good: set[bytes] = set()
        for root in {root.hash: root for root in roots.values()}.values():
            parent = self._parent(root)
            if parent is not None:
                fine = parent.status is Status.CANONICAL
            else:
                fine = root.number - 1 not in self.canonical or root.number == self.tip + 1
            if fine or root.hash in standing:
                good.add(root.hash)
        return {b.hash: b for b in blocks if roots[b.hash].hash in good}

    def _refuse(self, blocks: list[Block], why: str) -> None:
        for block in blocks:
            block.status = Status.REFUSED
            holder = self.canonical.get(block.number) or (
                self.canonical.get(self.tip) if block.hash in self.foreign else None
            )
            known = holder.hash if holder else self.genesis if block.number == 0 else block.parent
            self.refused[block.hash] = (known, why)

    def outcome(self, arrived: set[bytes], old_tip_number: int | None) -> Outcome:
        for block in self.blocks.values():
            # Rows without their block are in the tables unless another block holds the height.
            if block.status in (Status.PROVISIONAL, Status.UNSEEN):
                block.status = Status.UNSEEN if block.number in self.canonical else Status.PROVISIONAL
        standing = {h: status for h in arrived if (status := self.blocks[h].status) is not None}
        changed = {
            b.hash: (self.before.get(b.hash), b.status)
            for b in self.blocks.values()
            if b.status is not None and b.status is not self.before.get(b.hash)
        }
        tip = self.canonical.get(self.tip)
        lost = [n for n, b in self.canonical_before.items() if b.status is Status.ORPHANED]
        reorg = None
        if lost and tip is not None and old_tip_number is not None:
            fork = min(lost) - 1
            old_tip = self.canonical_before[max(self.canonical_before)]
            reorg = Reorg(old_tip_number - fork, fork, old_tip, tip)
        return Outcome(standing, changed, self.refused, reorg, tip, self.finalised)
