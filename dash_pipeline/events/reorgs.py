"""Fork choice: which blocks are canonical, given every block heard of.

Belongs here: the decision, as a pure function of known blocks and arriving blocks. Does not belong here: moving rows.

The exporter's latest word is the truth: of two branches, the one whose block was produced to Kafka last is canonical.
"Last" is the record's own time, not the order in which partitions happen to be read, so the outcome does not depend on
that order. A block that fits its neighbours, or fills a gap, contradicts nothing and is simply canonical.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


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
    before (None: first heard of). `refused`: blocks refused, each with the hash it contradicts and why."""

    standing: dict[bytes, Status]
    changed: dict[bytes, tuple[Status | None, Status]]
    refused: dict[bytes, tuple[bytes | None, str]]
    reorg: Reorg | None
    tip: Block | None


def follow(
    known: Mapping[bytes, Block],
    arrivals: Iterable[Block],
    *,
    tip_number: int | None,
    finalised: int,
    max_depth: int,
    genesis: bytes | None = None,
) -> Outcome:
    """Take `arrivals` into the tree of `known` blocks (which are changed in place).

    `known` must hold: the arrivals' hashes, every block at their heights and the heights beside them, and all blocks
    from `2 * max_depth` below the tip up. `tip_number` is the highest canonical height, None on an empty chain; no
    block at or below `finalised` can leave the chain. `genesis`: the hash of the chain's first block, where known.
    """
    tree = _Tree(dict(known), tip_number, finalised, max_depth, genesis)
    arrivals = sorted(arrivals, key=lambda b: (b.seen, b.number))
    for block in arrivals:
        tree.take(block)
    return tree.outcome({block.hash for block in arrivals}, tip_number)


class _Tree:
    """The blocks by hash, and the canonical and provisional ones by height, while arrivals are taken one by one."""

    def __init__(
        self,
        blocks: dict[bytes, Block],
        tip: int | None,
        finalised: int,
        max_depth: int,
        genesis: bytes | None,
    ) -> None:
        self.blocks = blocks
        self.before = {b.hash: b.status for b in blocks.values()}
        self.canonical = {b.number: b for b in blocks.values() if b.status is Status.CANONICAL}
        self.canonical_before = dict(self.canonical)
        self.heights: dict[int, list[Block]] = {}
        for block in blocks.values():
            self.heights.setdefault(block.number, []).append(block)
        self.tip = -1 if tip is None else tip
        self.finalised, self.max_depth, self.genesis = finalised, max_depth, genesis
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
            self._refuse([block], "the block was refused before")
            return
        self._place(block)
        # Children that came before it and could not be connected are connected now.
        waiting = [block]
        while waiting:
            parent = waiting.pop()
            for child in self.heights.get(parent.number + 1, ()):
                if child.parent == parent.hash and child.status is Status.DETACHED:
                    self._place(child)
                    waiting.append(child)

    def _place(self, block: Block) -> None:
        parent = self.blocks.get(block.parent or b"")
        if parent is not None and parent.status is Status.REFUSED:
            self._refuse([block], "its parent was refused")
        elif block.number == 0 and self.genesis is not None and block.hash != self.genesis:
            self._refuse([block], "another chain's first block")
        elif self._fits(block):
            self._adopt(block)
        else:
            self._contend(block)

    def _fits(self, block: Block) -> bool:
        """No canonical block is contradicted by this one being canonical."""
        below, above = self.canonical.get(block.number - 1), self.canonical.get(block.number + 1)
        return (
            block.number not in self.canonical
            and (below is None or below.hash == block.parent)
            and (above is None or above.parent == block.hash)
        )

    def _contend(self, block: Block) -> None:
        """Resolve a block that contradicts the canonical chain."""
        path, fork = self._ancestors(block)
        root = path[-1]
        holder = self.canonical.get(root.number - 1)
        claimed = self._claimed(block)
        if root.number == 0:
            self._refuse(path, "another chain's first block")
            return
        unconnected = fork is None and holder is not None
        if unconnected and not claimed and root.number != self.tip + 1:
            block.status = Status.DETACHED
            return
        # An unconnected branch right above the tip means that the exporter did not tell of a reorg: the block below is
        # known not to be its parent, and no more than that.
        fork_number = root.number - 2 if unconnected else root.number - 1
        depth = self.tip - fork_number
        if depth > self.max_depth:
            self._refuse(path, f"a fork {depth} blocks deep, at most {self.max_depth} are taken")
        elif fork_number < self.finalised:
            self._refuse(path, f"a fork below the finalised block {self.finalised}")
        elif not claimed and self._newest_above(fork_number) > block.seen:
            block.status = Status.ORPHANED
        else:
            self._switch(path, fork_number, block.number if claimed else self.tip)

    def _ancestors(self, block: Block) -> tuple[list[Block], Block | None]:
        """The block and its known ancestors that are not canonical, newest first, and the canonical one they meet."""
        path = [block]
        while True:
            parent = self.blocks.get(path[-1].parent or b"")
            if parent is None or (parent.parent is None and parent.status is not Status.CANONICAL):
                return path, None
            if parent.status is Status.CANONICAL:
                return path, parent
            path.append(parent)

    def _claimed(self, block: Block) -> bool:
        """A canonical block names this one as its parent."""
        above = self.canonical.get(block.number + 1)
        return above is not None and above.parent == block.hash

    def _newest_above(self, number: int) -> tuple[int, int]:
        return max((b.seen for n, b in self.canonical.items() if n > number), default=(0, 0))

    def _switch(self, path: list[Block], fork_number: int, up_to: int) -> None:
        """Canonical from the fork on is `path` and nothing else up to the height `up_to`."""
        for number in range(fork_number + 1, up_to + 1):
            loser = self.canonical.pop(number, None)
            if loser is not None:
                loser.status = Status.ORPHANED
        if up_to == self.tip:
            self.tip = fork_number
        for block in reversed(path):
            self._adopt(block, extend=False)
        self._extend(path[0])

    def _adopt(self, block: Block, extend: bool = True) -> None:
        block.status = Status.CANONICAL
        self.canonical[block.number] = block
        self.tip = max(self.tip, block.number)
        for other in self.heights[block.number]:
            if other.status is Status.PROVISIONAL:
                other.status = Status.UNSEEN
        if extend:
            self._extend(block)

    def _extend(self, block: Block) -> None:
        """Children heard of earlier follow their parent: those that only waited for it, and those announced after it.
        Others lost to another branch before, and come back when they are announced again."""
        while block.number + 1 not in self.canonical:
            children = [
                child
                for child in self.heights.get(block.number + 1, ())
                if child.parent == block.hash
                and (child.status is Status.DETACHED or (child.status is Status.ORPHANED and child.seen >= block.seen))
            ]
            if not children:
                return
            block = max(children, key=lambda child: child.seen)
            self._adopt(block, extend=False)

    def _refuse(self, path: list[Block], why: str) -> None:
        for block in path:
            block.status = Status.REFUSED
            holder = self.canonical.get(block.number)
            known = holder.hash if holder else self.genesis if block.number == 0 else block.parent
            self.refused[block.hash] = (known, why)

    def outcome(self, arrived: set[bytes], old_tip_number: int | None) -> Outcome:
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
        return Outcome(standing, changed, self.refused, reorg, tip)
