"""The trail of published blocks, and how the exporter's output is cut into whole batches. No node here."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.feed.exporter import Exporter
from dash_pipeline.feed.follow import TRAIL_BLOCKS, Trail, first_orphan, load_trail, save_trail, trail_file
from dash_pipeline.feed.live import check_entities


def links(first: int, last: int, branch: str = "a") -> list[tuple[int, str, str]]:
    """Blocks of a branch, each on the one before."""
    return [(number, f"{branch}{number}", f"{branch}{number - 1}") for number in range(first, last + 1)]


def trail(first: int, last: int) -> Trail:
    made = Trail.starting_at(first)
    made.extend(links(first, last))
    return made


# --- the trail


def test_blocks_that_go_on_fit() -> None:
    assert trail(5, 9).next == 10
    assert trail(5, 9).fits(links(10, 12))
    assert Trail.starting_at(7).fits(links(7, 9))


def test_blocks_of_another_branch_do_not_fit() -> None:
    assert not trail(5, 9).fits(links(10, 12, "b"))
    assert not trail(5, 9).fits([*links(10, 11), *links(12, 12, "b")])


def test_old_blocks_are_forgotten() -> None:
    made = trail(0, TRAIL_BLOCKS + 99)
    assert len(made.hashes) == TRAIL_BLOCKS
    assert min(made.hashes) == 100
    assert made.first == 0


def test_cutting() -> None:
    made = trail(0, 9)
    made.cut(7)
    assert (made.next, max(made.hashes)) == (7, 6)
    assert made.fits(links(7, 7))


@pytest.mark.parametrize("fork", [1, 2, 50, 99, 100])
def test_the_first_orphan(fork: int) -> None:
    """Blocks below `fork` are the node's; asking it a few times is enough."""
    asked: list[int] = []

    def node(number: int) -> str:
        asked.append(number)
        return f"a{number}" if number < fork else f"b{number}"

    assert first_orphan(trail(0, 99), node) == fork
    assert len(asked) <= 8


def test_a_shorter_branch_orphans_what_is_above_it() -> None:
    assert first_orphan(trail(0, 99), lambda number: f"a{number}" if number <= 60 else None) == 61


def test_a_trail_of_nothing_has_no_orphans() -> None:
    assert first_orphan(Trail.starting_at(40), lambda _: None) == 40


def test_another_chain_is_refused() -> None:
    with pytest.raises(DashError, match=r"none of the last 10 published blocks \(0\.\.9\)"):
        first_orphan(trail(0, 9), lambda number: f"b{number}")


def test_a_fork_deeper_than_the_trail_is_refused() -> None:
    with pytest.raises(DashError, match="a fork deeper than that"):
        first_orphan(trail(5, TRAIL_BLOCKS + 5), lambda number: f"b{number}")


def test_a_fork_below_the_first_block_begins_there_again() -> None:
    assert first_orphan(trail(5, 9), lambda number: f"b{number}") == 5


def test_the_trail_is_kept(tmp_path: Path) -> None:
    file = trail_file(tmp_path, "bsc", "https://node.example/secret-key")
    assert "secret" not in str(file)
    assert load_trail(file) is None
    save_trail(file, trail(3, 6))
    assert load_trail(file) == trail(3, 6)
    file.write_text("{")
    with pytest.raises(DashError, match="remove it"):
        load_trail(file)


def test_entities() -> None:
    check_entities(["block", "trace"])
    with pytest.raises(DashError, match="unknown receipt"):
        check_entities(["block", "receipt"])
    with pytest.raises(DashError, match="block is needed"):
        check_entities(["log"])


# --- the exporter's output

BLOCK = {"type": "block", "number": 4, "hash": "0x4", "parent_hash": "0x3"}
LOG = {"type": "log", "block_number": 4}


def pretender(folder: Path, body: str) -> Path:
    """A program that is started like ethereum-etl, and can `show` rows and `finish` blocks."""
    program = folder / "ethereumetl"
    program.write_text(
        f"""#!{sys.executable}
import json, sys, time
from pathlib import Path
marker = Path(sys.argv[sys.argv.index("--last-synced-block-file") + 1])
def show(row): print(json.dumps(row), flush=True)
def finish(block): marker.write_text(f"{{block}}\\n")
{body}
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_a_batch_is_given_when_it_is_whole(tmp_path: Path) -> None:
    body = f"show({BLOCK}); time.sleep(0.3); show({LOG}); Path({str(tmp_path / 'shown')!r}).touch()\n"
    body += f"while not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.02)\nfinish(4); time.sleep(60)"
    with Exporter(pretender(tmp_path, body), "http://node", 4, ["block", "log"]) as exporter:
        deadline = time.monotonic() + 10
        while not (tmp_path / "shown").exists() and time.monotonic() < deadline:
            assert exporter.next_batch(0.1) == []
        assert exporter.next_batch(0.1) == []
        (tmp_path / "go").touch()
        batch = exporter.next_batch(10)
    assert [json.loads(line) for _, line in batch] == [BLOCK, LOG]


def test_what_follows_a_whole_batch_waits_for_its_own_end(tmp_path: Path) -> None:
    body = f"show({BLOCK}); finish(4); show({BLOCK | {'number': 5}}); time.sleep(60)"
    with Exporter(pretender(tmp_path, body), "http://node", 4, ["block"]) as exporter:
        assert [message.number for message, _ in exporter.next_batch(10)] == [4]
        assert exporter.next_batch(0.3) == []


def test_what_was_written_before_the_end_is_given(tmp_path: Path) -> None:
    body = f"show({BLOCK}); finish(4); print('it broke', file=sys.stderr); sys.exit(1)"
    with Exporter(pretender(tmp_path, body), "http://node", 4, ["block"]) as exporter:
        assert len(exporter.next_batch(10)) == 1
        with pytest.raises(DashError, match="ended by itself"):
            exporter.next_batch(10)


def test_output_that_is_no_event(tmp_path: Path) -> None:
    with (
        Exporter(pretender(tmp_path, "print('hello', flush=True); time.sleep(60)"), "http://node", 4, []) as exporter,
        pytest.raises(DashError, match="printed what is no event"),
    ):
        exporter.next_batch(10)


def test_a_child_that_does_not_want_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dash_pipeline.children.GRACE_S", 0.2)
    body = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); show({BLOCK}); finish(4); time.sleep(60)"
    with Exporter(pretender(tmp_path, body), "http://node", 4, ["block"]) as exporter:
        assert exporter.next_batch(10)
        pid = exporter.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
