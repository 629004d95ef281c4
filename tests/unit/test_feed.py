"""Files of events: what is taken, in which order, where it goes, what a wrong file is told. No Kafka here."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed import files
from dash_pipeline.feed.publish import Key, Stopped, message_key, paced, publish, told
from dash_pipeline.feed.replay import replay_into
from dash_pipeline.feed.wait import missing


class ListSink:
    """Keeps what it is sent; refuses, or fails at a given message, when told so."""

    def __init__(self, refused: Counter[str] | None = None, fail_at: int | None = None) -> None:
        self.messages: list[tuple[str, bytes, bytes | None]] = []
        self.refused = refused or Counter()
        self.fail_at = fail_at

    @property
    def delivered(self) -> Counter[str]:
        return Counter(topic for topic, _, _ in self.messages) - self.refused

    def send(self, topic: str, value: bytes, key: bytes | None) -> None:
        if len(self.messages) == self.fail_at:
            raise Unavailable("Kafka does not answer")
        self.messages.append((topic, value, key))

    def flush(self) -> None:
        """Everything has arrived already."""


def line(type_: str, block: int | None = None, **fields: object) -> bytes:
    number = {"number": block} if type_ == "block" else {"block_number": block}
    return json.dumps({"type": type_, **number, **fields}).encode()


def write(file: Path, *lines: bytes) -> Path:
    data = b"".join(line + b"\n" for line in lines)
    if file.suffix == ".gz":
        data = gzip.compress(data)
    if file.suffix == ".zst":
        data = zstandard.compress(data)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def feed(path: Path, sink: ListSink, key: Key = Key.NONE) -> list[tuple[str, bytes, bytes | None]]:
    replay_into(sink, files.find([path]), "anvil", key=key)
    return sink.messages


# --- which files


def test_a_folder_gives_its_event_files_and_says_what_it_left_out(tmp_path: Path) -> None:
    taken = [
        write(tmp_path / "block.jsonl.gz", line("block", 1)),
        write(tmp_path / "below" / "log.jsonl", line("log", 1)),
        write(tmp_path / "token.jsonl.zst", line("token", 1)),
        write(tmp_path / "trace.json", line("trace", 1)),
        write(tmp_path / "expected_contracts.json"),
    ]
    write(tmp_path / "labels.json", b"{", b'"client": "anvil"', b"}")
    write(tmp_path / "reply.json", b'{"jsonrpc": "2.0", "result": []}')
    write(tmp_path / "tokens.csv", b"address,symbol")
    write(tmp_path / "README.md", b"# hello")
    sources = files.find([tmp_path])
    assert sources.groups == [sorted(taken)]
    assert [notice.split(":")[0] for notice in sources.skipped] == [
        str(tmp_path / "labels.json"),
        str(tmp_path / "reply.json"),
    ]


def test_arguments_are_published_one_after_the_other(tmp_path: Path) -> None:
    logs = write(tmp_path / "log.jsonl", line("log", 1))
    blocks = write(tmp_path / "block.jsonl", line("block", 1))
    sink = ListSink()
    replay_into(sink, files.find([logs, blocks]), "anvil")
    assert [topic for topic, *_ in sink.messages] == ["anvil.logs", "anvil.blocks"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.jsonl", "no such file or folder"),
        ("notes.txt", r"not one of \.json, \.jsonl"),
        ("empty", "no events in it"),
    ],
)
def test_what_cannot_be_a_source(tmp_path: Path, name: str, said: str) -> None:
    write(tmp_path / "notes.txt", b"hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(files.WrongFile, match=said):
        files.find([tmp_path / name])


# --- in which order


def test_a_folder_is_merged_by_block_then_by_type(tmp_path: Path) -> None:
    write(tmp_path / "contract.jsonl", line("contract", 2))
    write(tmp_path / "log.jsonl", line("log", 1), line("log", 1, n=2), line("log", 3))
    write(tmp_path / "block.jsonl", line("block", 1), line("block", 2), line("block", 3))
    write(tmp_path / "trace.jsonl", line("trace", None), line("trace", 2), line("trace", None))
    write(tmp_path / "transaction.jsonl", line("transaction", 1), line("transaction", 3))
    sent = [json.loads(value) for _, value, _ in feed(tmp_path, ListSink())]
    assert [(row["type"], row.get("number", row.get("block_number"))) for row in sent] == [
        ("trace", None),
        ("block", 1),
        ("transaction", 1),
        ("log", 1),
        ("log", 1),
        ("block", 2),
        ("trace", 2),
        ("trace", None),
        ("contract", 2),
        ("block", 3),
        ("transaction", 3),
        ("log", 3),
    ]


def test_one_file_keeps_its_order(tmp_path: Path) -> None:
    lines = [line("log", 9), line("block", 3), line("block", 1), line("transaction", 1)]
    file = write(tmp_path / "mixed.jsonl", *lines)
    assert [value for _, value, _ in feed(file, ListSink())] == lines


# --- what is sent where


def test_lines_are_published_as_they_stand(tmp_path: Path) -> None:
    odd = f'{{ "value": {2**256 - 1},\t"type":"transaction", "new_field": "é", "block_number": 7 }}'
    file = tmp_path / "transaction.jsonl"
    file.write_bytes(odd.encode() + b"\r\n\n" + line("transaction", 8))
    assert feed(file, ListSink()) == [
        ("anvil.transactions", odd.encode(), None),
        ("anvil.transactions", line("transaction", 8), None),
    ]


def test_wrong_values_are_published_too(tmp_path: Path) -> None:
    """Dead letters are the lanes' business; here only a `type` is needed."""
    wrong = b'{"type": "log", "block_number": "seven", "address": 5}'
    assert feed(write(tmp_path / "log.jsonl", wrong), ListSink(), Key.TOKEN) == [("anvil.logs", wrong, None)]


@pytest.mark.parametrize(
    ("row", "token", "wallet"),
    [
        (line("block", 1, miner="0xM"), None, None),
        (line("transaction", 1, from_address="0xFF", to_address="0xAA"), b"0xaa", b"0xff"),
        (line("transaction", 1, from_address="0xFF", to_address=None), None, b"0xff"),
        (line("log", 1, address="0xAB"), b"0xab", b"0xab"),
        (line("token_transfer", 1, token_address="0xT", from_address="0xF"), b"0xt", b"0xf"),
        (line("contract", 1, address="0xC"), b"0xc", b"0xc"),
    ],
)
def test_keys(row: bytes, token: bytes | None, wallet: bytes | None) -> None:
    message = files.parse(row)
    assert message_key(message, Key.NONE) is None
    assert message_key(message, Key.TOKEN) == token
    assert message_key(message, Key.WALLET) == wallet


def test_the_report(tmp_path: Path) -> None:
    write(tmp_path / "block.jsonl", line("block", 1), line("block", 2))
    write(tmp_path / "log.jsonl", line("log", 1))
    report = replay_into(ListSink(), files.find([tmp_path]), "bsc")
    assert (report.messages, report.types) == (3, {"block": 2, "log": 1})
    assert report.topics == {"bsc.blocks": 2, "bsc.logs": 1}


# --- a wrong file


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"hello", "not JSON"),
        (b'{"type": "block", }', "not JSON"),
        (b'{"type": "block"', "not JSON"),
        (b'{"type": "bl\xff"}', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"17", "not a JSON object"),
        (b'{"number": 1}', "no `type`"),
        (b'{"type": "receipt"}', "unknown type 'receipt'"),
        (b'{"type": 3}', "unknown type 3"),
        (b'{"type": ["block"]}', "unknown type"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, wrong: bytes, reason: str) -> None:
    file = write(tmp_path / "block.jsonl", line("block", 1), b"", wrong, line("block", 2))
    with pytest.raises(files.WrongFile) as caught:
        files.check([file])
    assert str(caught.value).startswith(f"{file}: line 3: {reason}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_broken_archive_is_named(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"block.jsonl.{suffix}", *(line("block", number) for number in range(20_000)))
    whole.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(files.WrongFile, match="cannot be read"):
        files.check([whole])
    whole.write_bytes(b"this is no archive")
    with pytest.raises(files.WrongFile, match="line 1: cannot be read"):
        files.check([whole])


def test_an_archive_of_several_parts(tmp_path: Path) -> None:
    rows = [line("block", number) for number in range(3)]
    file = tmp_path / "block.jsonl.zst"
    file.write_bytes(b"".join(zstandard.compress(row + b"\n") for row in rows))
    assert [event.line for event in files.read_events(file)] == rows


def test_counts_by_type(tmp_path: Path) -> None:
    first = write(tmp_path / "block.jsonl", line("block", 1), line("block", 2))
    second = write(tmp_path / "log.jsonl", line("log", 1))
    assert files.check([first, second]) == {"block": 2, "log": 1}


# --- when it ends early, it says how much is published


def events(*lines: bytes) -> Iterator[files.Event]:
    for row in lines:
        yield files.Event(files.parse(row), row)


def test_a_source_that_turns_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "block.jsonl", line("block", 1), line("block", 2), b"hello")
    with pytest.raises(Stopped) as caught:
        feed(file, ListSink())
    assert "line 3: not JSON" in str(caught.value)
    assert str(caught.value).endswith("published: 2 to anvil.blocks")
    assert caught.value.exit_code == 2


def test_a_broker_that_goes_away() -> None:
    with pytest.raises(Stopped) as caught:
        publish(events(line("block", 1), line("log", 1), line("log", 2)), "anvil", ListSink(fail_at=2))
    assert str(caught.value) == "Kafka does not answer; published: 1 to anvil.blocks, 1 to anvil.logs"
    assert caught.value.exit_code == Unavailable.exit_code


def test_messages_that_the_broker_refuses() -> None:
    sink = ListSink(refused=Counter({"anvil.logs": 1}))
    with pytest.raises(Stopped) as caught:
        publish(events(line("block", 1), line("log", 1), line("log", 2)), "anvil", sink)
    assert str(caught.value) == ("the broker refused 1 of 3 messages; published: 1 to anvil.blocks, 1 to anvil.logs")


def test_an_interrupt_says_how_much_is_published() -> None:
    def interrupted() -> Iterator[files.Event]:
        yield from events(line("block", 1))
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match=r"interrupted; published: 1 to anvil\.blocks"):
        publish(interrupted(), "anvil", ListSink())


def test_only_what_this_call_sent_is_counted() -> None:
    sink = ListSink()
    publish(events(line("block", 1), line("log", 1)), "anvil", sink)
    assert publish(events(line("block", 2)), "anvil", sink) == {"block": 1}


def test_nothing_is_said_as_nothing() -> None:
    def wrong() -> Iterator[files.Event]:
        raise DashError("wrong from the start")
        yield

    with pytest.raises(Stopped, match="wrong from the start; published: nothing"):
        publish(wrong(), "anvil", ListSink())


# --- speed and progress


def test_a_rate_is_kept() -> None:
    start = time.monotonic()
    assert list(paced(range(50), per_second=500)) == list(range(50))
    assert time.monotonic() - start >= 49 / 500 - 0.002


def test_progress_ends_at_the_end() -> None:
    heard: list[int] = []
    assert list(told(range(1000), heard.append, every_s=3600)) == list(range(1000))
    assert heard == [1, 1000]


def test_what_is_not_committed_yet() -> None:
    targets = {("a", 0): 10, ("a", 1): 5, ("b", 0): 0, ("c", 0): 3}
    assert missing(targets, {("a", 0): 4, ("a", 1): 9, ("c", 0): 3}) == {"a": 6}
    assert missing(targets, {}) == {"a": 15, "c": 3}
