"""Fork choice: rules one by one, and invariants over random trees that arrive in random pieces and orders."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from dash_pipeline.events.reorgs import IN_TABLES, Block, Outcome, Status, follow, off_the_clock

DEPTH = 256


def hash_of(name: str) -> bytes:
    return name.encode().ljust(32, b".")


def block(name: str, parent: str, ms: int, offset: int = 0) -> Block:
    """`A7` is branch A's block at height 7."""
    return Block(hash_of(name), int(name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")), hash_of(parent), (ms, offset), None)


def branch(letter: str, first: int, last: int, parent: str, ms: int) -> list[Block]:
    """Blocks of one branch, announced one after the other from `ms` on."""
    blocks = []
    for number in range(first, last + 1):
        blocks.append(block(f"{letter}{number}", parent, ms + number))
        parent = f"{letter}{number}"
    return blocks


class Chain:
    """What the database keeps between two batches: every call of `follow` sees only what its contract promises."""

    def __init__(self, max_depth: int = DEPTH, genesis: bytes | None = None) -> None:
        self.blocks: dict[bytes, Block] = {}
        self.tip: int | None = None
        self.finalised = -1
        self.max_depth, self.genesis = max_depth, genesis
        self.outcomes: list[Outcome] = []

    def take(self, *blocks: Block) -> Outcome:
        window = max((self.tip or 0) - 2 * self.max_depth, 0)
        near = {b.number + d for b in blocks for d in (-1, 0, 1)}
        known = {h: copy.copy(b) for h, b in self.blocks.items() if b.number in near or b.number >= window}
        outcome = follow(
            known,
            [copy.copy(b) for b in blocks],
            tip_number=self.tip,
            finalised=self.finalised,
            max_depth=self.max_depth,
            genesis=self.genesis,
        )
        for old in known.values():
            self.blocks[old.hash] = old
        for new in sorted(blocks, key=lambda b: b.seen):
            stored = self.blocks.setdefault(new.hash, copy.copy(new))
            stored.parent, stored.seen = new.parent, max(stored.seen, new.seen)
        for changed, (_, status) in outcome.changed.items():
            self.blocks[changed].status = status
        if outcome.tip is not None:
            self.tip = outcome.tip.number
        assert outcome.finalised >= self.finalised
        self.finalised = outcome.finalised
        self.outcomes.append(outcome)
        self.check()
        return outcome

    def check(self) -> None:
        """What holds at any time."""
        canonical = [b for b in self.blocks.values() if b.status is Status.CANONICAL]
        by_height = {b.number: b for b in canonical}
        assert len(by_height) == len(canonical), "one canonical block per height"
        for b in canonical:
            below = by_height.get(b.number - 1)
            assert below is None or below.hash == b.parent, "neighbours are linked"
        assert self.tip == max(by_height, default=None)
        for b in self.blocks.values():
            if b.status in (Status.PROVISIONAL, Status.UNSEEN):
                assert (b.status is Status.UNSEEN) == (b.number in by_height)

    def canonical(self) -> list[str]:
        found = sorted((b.number, b.hash) for b in self.blocks.values() if b.status is Status.CANONICAL)
        return [name.rstrip(b".").decode() for _, name in found]

    def status(self, name: str) -> Status | None:
        return self.blocks[hash_of(name)].status


def names(letter: str, first: int, last: int) -> list[str]:
    return [f"{letter}{n}" for n in range(first, last + 1)]


# --- one by one


def test_a_chain_is_canonical_and_nothing_is_a_reorg() -> None:
    chain = Chain()
    for b in branch("A", 0, 5, "-", 0):
        outcome = chain.take(b)
        assert outcome.reorg is None
        assert outcome.standing == {b.hash: Status.CANONICAL}
        assert outcome.changed == {b.hash: (None, Status.CANONICAL)}
    assert chain.canonical() == names("A", 0, 5)


@pytest.mark.parametrize("depth", [1, 2, 6, 64, 255, 256])
@pytest.mark.parametrize("pieces", [1, 3, 10_000])
def test_a_reorg_is_recorded_with_its_depth(depth: int, pieces: int) -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 300, "-", 0))
    other = branch("B", 301 - depth, 301, f"A{300 - depth}", 1000)
    for at in range(0, len(other), pieces):
        chain.take(*other[at : at + pieces])
    assert chain.canonical() == names("A", 0, 300 - depth) + names("B", 301 - depth, 301)
    assert all(chain.status(name) is Status.ORPHANED for name in names("A", 301 - depth, 300))
    (reorg,) = [outcome.reorg for outcome in chain.outcomes if outcome.reorg]
    assert (reorg.depth, reorg.fork_number) == (depth, 300 - depth)
    assert reorg.old_tip.hash == hash_of("A300")
    assert reorg.new_tip.number == min(300 - depth + pieces, 301)


@pytest.mark.parametrize("pieces", [1, 10_000])
def test_a_fork_deeper_than_is_taken_is_refused_with_both_hashes(pieces: int) -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 300, "-", 0))
    other = branch("B", 44, 310, "A43", 1000)
    refused = {}
    for at in range(0, len(other), pieces):
        refused |= chain.take(*other[at : at + pieces]).refused
    assert chain.canonical() == names("A", 0, 300)
    assert refused.keys() == {b.hash for b in other}
    known, why = refused[hash_of("B44")]
    assert known == hash_of("A44")
    assert "a fork 257 blocks deep, at most 256 are taken" in why
    assert all(known is not None for known, _ in refused.values())
    assert not any(outcome.reorg for outcome in chain.outcomes)


def test_nothing_below_the_finalised_block_is_taken() -> None:
    """Even after the tip has come down."""
    chain = Chain(max_depth=10)
    chain.take(*branch("A", 0, 100, "-", 0))
    assert chain.finalised == 90
    chain.take(*branch("B", 91, 92, "A90", 1000))
    assert chain.tip == 92
    outcome = chain.take(block("C90", "A89", 3000))
    assert outcome.refused[hash_of("C90")] == (hash_of("A90"), "a fork below the finalised block 90")
    assert chain.canonical() == [*names("A", 0, 90), "B91", "B92"]


def test_the_outcome_of_one_batch_is_that_of_many() -> None:
    """A history read again from its beginning refuses the same forks, however few batches it takes."""
    history = [*branch("A", 0, 300, "-", 0), *branch("B", 40, 45, "A39", 1000), *branch("C", 299, 320, "A298", 2000)]
    whole = Chain()
    whole.take(*history)
    slow = Chain()
    for b in history:
        slow.take(b)
    assert whole.canonical() == slow.canonical() == names("A", 0, 298) + names("C", 299, 320)
    assert {h: b.status for h, b in whole.blocks.items()} == {h: b.status for h, b in slow.blocks.items()}
    assert whole.status("B40") is Status.REFUSED


def test_another_chain_with_another_first_block_is_refused() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 5, "-", 0))
    outcome = chain.take(*branch("B", 0, 9, "-", 1000))
    assert outcome.refused[hash_of("B0")] == (hash_of("A0"), "another chain's first block")
    assert outcome.refused.keys() == {hash_of(name) for name in names("B", 0, 9)}
    assert chain.canonical() == names("A", 0, 5)


def test_a_first_block_that_the_second_does_not_name_is_refused() -> None:
    chain = Chain()
    chain.take(*branch("A", 1, 5, "A0", 0))
    assert chain.take(block("B0", "-", 100)).refused.keys() == {hash_of("B0")}
    chain.take(block("A0", "-", 101))
    assert chain.canonical() == names("A", 0, 5)


def test_the_registered_first_block_counts_before_any_is_stored() -> None:
    chain = Chain(genesis=hash_of("A0"))
    outcome = chain.take(*branch("B", 0, 3, "-", 0))
    assert outcome.refused[hash_of("B0")] == (hash_of("A0"), "another chain's first block")
    assert chain.canonical() == []
    chain.take(*branch("A", 0, 3, "-", 1000))
    assert chain.canonical() == names("A", 0, 3)


def test_another_chain_from_its_middle_waits_for_its_parent_and_merges_nothing() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 50, "-", 0))
    outcome = chain.take(*branch("B", 30, 60, "B29", 1000))
    assert set(outcome.standing.values()) == {Status.DETACHED}
    assert chain.canonical() == names("A", 0, 50)
    assert outcome.reorg is None


def test_another_chain_below_the_finalised_block_is_refused_at_once() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 700, "-", 0))
    outcome = chain.take(*branch("B", 30, 32, "B29", 1000))
    assert outcome.refused[hash_of("B30")][0] == hash_of("A30")
    assert {hash_of("B30"), hash_of("B31"), hash_of("B32")} <= outcome.refused.keys()


def test_a_detached_branch_connects_when_its_parent_comes() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 50, "-", 0))
    late = branch("B", 48, 53, "A47", 1000)
    chain.take(*late[1:])
    assert chain.status("B49") is Status.DETACHED
    outcome = chain.take(late[0])
    assert chain.canonical() == names("A", 0, 47) + names("B", 48, 53)
    assert outcome.reorg is not None
    assert outcome.reorg.depth == 3


def test_a_detached_branch_that_lost_is_orphaned_when_its_parent_comes() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 50, "-", 1000))
    late = branch("B", 48, 53, "A47", 0)
    chain.take(*late[1:])
    chain.take(late[0])
    assert chain.canonical() == names("A", 0, 50)
    assert {chain.status(name) for name in names("B", 48, 53)} == {Status.ORPHANED}


def test_blocks_that_come_back_are_restored() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 10, "-", 0))
    chain.take(*branch("B", 8, 12, "A7", 100))
    outcome = chain.take(*branch("A", 8, 13, "A7", 200))
    assert chain.canonical() == names("A", 0, 13)
    assert outcome.changed[hash_of("A9")] == (Status.ORPHANED, Status.CANONICAL)
    assert outcome.changed[hash_of("B9")] == (Status.CANONICAL, Status.ORPHANED)
    assert outcome.reorg is not None
    assert outcome.reorg.depth == 5


def test_a_shorter_branch_that_is_newer_wins() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 20, "-", 0))
    chain.take(*branch("B", 15, 16, "A14", 100))
    assert chain.canonical() == [*names("A", 0, 14), "B15", "B16"]
    assert chain.tip == 16


def test_gaps_are_fine_and_are_filled() -> None:
    chain = Chain()
    blocks = branch("A", 0, 30, "-", 0)
    for span in (slice(20, 25), slice(0, 5), slice(28, 31), slice(10, 15)):
        assert chain.take(*blocks[span]).reorg is None
    assert len(chain.canonical()) == 18
    chain.take(*blocks)
    assert chain.canonical() == names("A", 0, 30)
    assert not any(outcome.reorg or outcome.refused for outcome in chain.outcomes)


def test_a_reorg_that_was_not_told_of_orphans_the_tip() -> None:
    """ethereum-etl by itself goes on with the next block, whose parent is not the one it published."""
    chain = Chain()
    chain.take(*branch("A", 0, 10, "-", 0))
    outcome = chain.take(block("B11", "B10", 100))
    assert chain.canonical() == [*names("A", 0, 9), "B11"]
    assert chain.status("A10") is Status.ORPHANED
    assert outcome.reorg is not None
    assert (outcome.reorg.depth, outcome.reorg.fork_number) == (1, 9)
    chain.take(block("B12", "B11", 101), block("B10", "B9", 102))
    assert chain.canonical() == [*names("A", 0, 8), "B10", "B11", "B12"]
    chain.take(block("B9", "A8", 103))
    assert chain.canonical() == names("A", 0, 8) + names("B", 9, 12)


def test_a_reorg_below_the_first_block_ever_announced() -> None:
    chain = Chain()
    chain.take(*branch("A", 18, 20, "A17", 0))
    chain.take(*branch("B", 18, 21, "B17", 100))
    assert chain.canonical() == names("B", 18, 21)


def test_a_child_of_a_refused_block_is_refused() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 3, "-", 0))
    chain.take(block("B0", "-", 10))
    outcome = chain.take(block("B1", "B0", 11))
    assert outcome.refused == {hash_of("B1"): (hash_of("A1"), "its parent was refused")}


def test_a_refused_block_is_judged_anew_when_it_is_announced_again() -> None:
    """An operator can send a branch again that was given up because its parent came too late."""
    chain = Chain()
    chain.take(*branch("A", 0, 50, "-", 0))
    chain.take(*branch("B", 49, 51, "B48", 1000))
    for name in names("B", 49, 51):
        chain.blocks[hash_of(name)].status = Status.REFUSED  # given up
    chain.take(*branch("B", 48, 51, "A47", 2000))
    assert chain.canonical() == names("A", 0, 47) + names("B", 48, 51)


def test_a_loser_of_long_ago_that_is_announced_again_is_no_news() -> None:
    """But its growing is."""
    chain = Chain()
    chain.take(*branch("A", 0, 10, "-", 0))
    chain.take(*branch("B", 9, 400, "A8", 100))
    outcome = chain.take(*branch("A", 0, 10, "-", 9000))
    assert outcome.refused == {}
    assert outcome.changed == {}
    outcome = chain.take(block("A11", "A10", 9999))
    assert outcome.refused.keys() == {hash_of("A11")}
    assert chain.status("A10") is Status.ORPHANED
    assert chain.tip == 400


def test_rows_without_their_block_change_sides_with_the_height() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 9, "-", 0))
    rows = Block(hash_of("B10"), 10, None, (0, 0), Status.PROVISIONAL)
    chain.blocks[rows.hash] = rows
    outcome = chain.take(block("A10", "A9", 10))
    assert outcome.changed[rows.hash] == (Status.PROVISIONAL, Status.UNSEEN)
    outcome = chain.take(block("C11", "C10", 100))  # orphans A10: its height is free
    assert outcome.changed[rows.hash] == (Status.UNSEEN, Status.PROVISIONAL)
    chain.take(block("B10", "A9", 200))
    assert chain.status("B10") is Status.CANONICAL
    assert chain.status("C11") is Status.ORPHANED


def test_a_block_whose_rows_came_first_takes_its_place() -> None:
    chain = Chain()
    chain.blocks[hash_of("A0")] = Block(hash_of("A0"), 0, None, (0, 0), Status.PROVISIONAL)
    outcome = chain.take(block("A0", "-", 5))
    assert outcome.changed == {hash_of("A0"): (Status.PROVISIONAL, Status.CANONICAL)}
    assert {Status.PROVISIONAL, Status.CANONICAL} == IN_TABLES


def test_the_newer_of_two_announcements_counts() -> None:
    """Two batches may bring them in the wrong order."""
    chain = Chain()
    chain.take(*branch("A", 0, 5, "-", 0))
    chain.take(block("B5", "A4", 300))
    chain.take(block("A5", "A4", 200))
    assert chain.canonical()[-1] == "B5"
    chain.take(block("A5", "A4", 400))
    assert chain.canonical()[-1] == "A5"


# --- random trees


def random_tree(rng: random.Random) -> list[Block]:
    """Announcements of a tree, as an exporter makes them: a parent before its child; some again later."""
    letters = "ABCDEFGHIJ"
    made = [block("A0", "-", 0)]
    taken: dict[int, int] = defaultdict(int)
    for _ in range(rng.randrange(1, 40)):
        parent = made[-1] if rng.random() < 0.6 else rng.choice(made)
        number = parent.number + 1
        if taken[number] == len(letters):
            continue
        name = f"{letters[taken[number]]}{number}"
        taken[number] += 1
        made.append(Block(hash_of(name), number, parent.hash, (0, 0), None))
    announced = list(made)
    for _ in range(rng.choice([0, 0, 3, 10])):
        again = rng.choice(made)
        at = rng.randrange(announced.index(again) + 1, len(announced) + 1)
        announced.insert(at, again)
    return [Block(b.hash, b.number, b.parent, (ms, ms), None) for ms, b in enumerate(announced)]


def expected(announced: Iterable[Block]) -> list[bytes]:
    """From the first block up, always to the child with the newest block among itself and its descendants."""
    parents: dict[bytes, bytes | None] = {}
    newest: dict[bytes, tuple[int, int]] = {}
    for b in announced:
        parents[b.hash] = b.parent
        newest[b.hash] = max(newest.get(b.hash, b.seen), b.seen)
    best = dict(newest)
    children: dict[bytes, list[bytes]] = defaultdict(list)
    for name, parent in parents.items():
        children[parent or b""].append(name)
        seen, up = newest[name], parent
        while up in best:
            best[up] = max(best[up], seen)
            up = parents[up]
    chain = [hash_of("A0")]
    while children[chain[-1]]:
        chain.append(max(children[chain[-1]], key=lambda name: best[name]))
    return chain


def in_pieces(rng: random.Random, blocks: list[Block]) -> list[list[Block]]:
    cuts = sorted(rng.sample(range(1, len(blocks)), min(rng.randrange(0, 12), len(blocks) - 1)))
    return [blocks[a:b] for a, b in zip([0, *cuts], [*cuts, len(blocks)], strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_random_trees_in_random_order_end_like_those_in_order(seed: int) -> None:
    for step in range(15):
        rng = random.Random(seed * 1000 + step)
        announced = random_tree(rng)
        want = expected(announced)
        last = announced[-1].hash
        ordered, pieces, shuffled = Chain(64), Chain(64), Chain(64)
        for b in announced:
            ordered.take(b)
        for piece in in_pieces(rng, announced):
            pieces.take(*piece)
        mixed = list(announced)
        rng.shuffle(mixed)
        for piece in in_pieces(rng, mixed):
            shuffled.take(*piece)
        for chain in (ordered, pieces, shuffled):
            got = [hash_of(name) for name in chain.canonical()]
            assert got == want, (seed, step)
            assert last in got
            others = {b.status for b in chain.blocks.values() if b.hash not in got}
            assert others <= {Status.ORPHANED}, (seed, step)
        # Everything again, from the broker (the same records) and from the exporter (new ones).
        for shift in (0, 1000):
            again = [Block(b.hash, b.number, b.parent, (b.seen[0] + shift, b.seen[1]), None) for b in announced]
            for piece in in_pieces(rng, again):
                shuffled.take(*piece)
            assert [hash_of(name) for name in shuffled.canonical()] == want, (seed, step)
        assert not any(outcome.refused for outcome in shuffled.outcomes)


@pytest.mark.parametrize("seed", range(20))
def test_a_foreign_chain_among_ours_merges_nothing_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    ours = branch("A", 0, 60, "-", 0)
    foreign = branch("B", 20, 50, "B19", rng.choice([-100, 0, 1000]))
    mixed = ours + foreign
    rng.shuffle(mixed)
    chain = Chain(64)
    for piece in in_pieces(rng, mixed):
        chain.take(*piece)
    chain.take(*[Block(b.hash, b.number, b.parent, (b.seen[0] + 5000, 0), None) for b in ours])
    assert chain.canonical() == names("A", 0, 60)


@pytest.mark.parametrize(
    ("blocks", "seconds", "fits"),
    [
        (5_000, 60_000, True),
        (5_000, 0, False),  # as many blocks in no time: a faster chain's
        (5_000, -60_000, False),  # higher and earlier
        (-5_000, -60_000, True),  # a backfill
        (-5_000, 60, False),  # lower and later: another live chain's
        (-17_000_000, -250_000_000, True),
    ],
)
def test_height_and_time_go_together(blocks: int, seconds: int, fits: bool) -> None:
    tip = datetime(2024, 1, 1, tzinfo=UTC)
    reason = off_the_clock(20_000_000 + blocks, tip + timedelta(seconds=seconds), 20_000_000, tip, pace_s=0.6)
    assert (reason is None) is fits
    if reason is not None:
        assert f"{blocks:+,} blocks and {seconds:+,} s" in reason


def test_a_foreign_block_is_refused_and_names_the_tip() -> None:
    chain = Chain()
    chain.take(*branch("A", 0, 3, "-", 0))
    far = block("B9000", "B8999", 50)
    outcome = follow(
        dict(chain.blocks), [far], tip_number=3, finalised=-1, max_depth=DEPTH, foreign={far.hash: "not ours"}
    )
    assert outcome.standing == {far.hash: Status.REFUSED}
    assert outcome.refused == {far.hash: (hash_of("A3"), "not ours")}
    assert outcome.tip is not None
    assert outcome.tip.number == 3
