"""Files of events in ethereum-etl's format: finding, checking and merging them.

Belongs here: what is read from disk before anything is published. Does not belong here: Kafka.
"""

from __future__ import annotations

import gzip
import heapq
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zstandard

from dash_pipeline.errors import DashError
from dash_pipeline.topics import TYPES

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".jsonl.zst")
READ_BYTES = 128 << 10
LOOK_AHEAD = 20_000
_ORDER = {type_: position for position, type_ in enumerate(TYPES)}
_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)  # gzip.BadGzipFile is an OSError


class Message(msgspec.Struct, gc=False):
    """What routing needs of a message. Everything else is published as it stands, right or wrong."""

    type: Any = None
    number: Any = None
    block_number: Any = None
    hash: Any = None
    parent_hash: Any = None
    token_address: Any = None
    address: Any = None
    from_address: Any = None
    to_address: Any = None

    @property
    def block(self) -> int | None:
        """The block that the message belongs to, if it says so."""
        number = self.number if self.type == "block" else self.block_number
        return number if type(number) is int else None


class Event(NamedTuple):
    """A message and the line it was read from, without its newline."""

    message: Message
    line: bytes


class WrongFile(DashError):
    """A file that is not what it should be; nothing of the line named was published."""

    def __init__(self, file: Path, reason: str, line: int | None = None) -> None:
        super().__init__(f"{file}: line {line}: {reason}" if line else f"{file}: {reason}")


class Sources(NamedTuple):
    """Files in the groups in which they are published, and notices about those that were left out."""

    groups: list[list[Path]]
    skipped: list[str]


_decoder = msgspec.json.Decoder(Message)


def parse(line: bytes) -> Message:
    """One line of ethereum-etl's output. Raises ValueError with the reason it cannot be published."""
    message = _decode(line)
    if message.type is None:
        raise ValueError("no `type`")
    if not isinstance(message.type, str) or message.type not in TYPES:
        raise ValueError(f"unknown type {message.type!r} (known: {', '.join(TYPES)})")
    return message


def _decode(line: bytes) -> Message:
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError:
        raise ValueError("not a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None


def find(paths: Iterable[Path]) -> Sources:
    """The files to publish: a file by itself, a folder with everything below it as one group.

    In a folder only names that end in SUFFIXES count, and of those a file whose first line is no ethereum-etl
    message (an RPC reply, say) is left out with a notice. A file named by itself is taken at its word.
    """
    groups: list[list[Path]] = []
    skipped: list[str] = []
    for path in paths:
        if path.is_dir():
            files, others = _in_folder(path)
            groups.append(files)
            skipped += others
        elif not path.exists():
            raise WrongFile(path, "no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise WrongFile(path, f"not one of {', '.join(SUFFIXES)}")
        else:
            groups.append([path])
    return Sources(groups, skipped)


def _in_folder(folder: Path) -> tuple[list[Path], list[str]]:
    candidates = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    files = [path for path in candidates if _is_etl(path)]
    if not files:
        raise WrongFile(folder, f"no events in it: no file of {', '.join(SUFFIXES)} begins with a message")
    others = [path for path in candidates if path not in files]
    return files, [f"{path}: skipped, its first line is no ethereum-etl message" for path in others]


def _is_etl(file: Path) -> bool:
    """Whether the first line is a JSON object with a `type`, known or not; an empty file is not wrong."""
    for _, line in read_lines(file):
        try:
            return _decode(line).type is not None
        except ValueError:
            return False
    return True


def check(files: Iterable[Path]) -> Counter[str]:
    """Read everything once: how many messages of each type there are.

    Raises WrongFile at the first line that cannot be published.
    """
    return Counter(event.message.type for file in files for event in read_events(file))


def merged(files: Iterable[Path]) -> Iterator[Event]:
    """The events of several files as the exporter would publish them: by block, then by type. One file keeps its order.

    Files are streamed; what one of several holds out of order (an export of several workers, say) is put in order
    as far as LOOK_AHEAD messages reach. A message without a block number stays behind the one before it.
    """
    files = list(files)
    if len(files) == 1:
        return read_events(files[0])
    streams = [_in_order(file) for file in files]
    return (event for _, _, event in heapq.merge(*streams, key=lambda keyed: keyed[0]))


def _in_order(file: Path) -> Iterator[tuple[tuple[int, int], int, Event]]:
    """The file's events by (block, type), each behind its key and its position."""
    ahead: list[tuple[tuple[int, int], int, Event]] = []
    block = -1
    for position, event in enumerate(read_events(file)):
        number = event.message.block
        block = block if number is None else number
        keyed = (block, _ORDER[event.message.type]), position, event
        if len(ahead) < LOOK_AHEAD:
            heapq.heappush(ahead, keyed)
        else:
            yield heapq.heappushpop(ahead, keyed)
    while ahead:
        yield heapq.heappop(ahead)


def read_events(file: Path) -> Iterator[Event]:
    """The events of one file. Raises WrongFile naming the line."""
    for number, line in read_lines(file):
        try:
            message = parse(line)
        except ValueError as error:
            raise WrongFile(file, str(error), number) from None
        yield Event(message, line)


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1, without newline. Raises WrongFile when unreadable."""
    number = 0
    try:
        for number, line in enumerate(_lines(file), start=1):
            if text := line.removesuffix(b"\n").removesuffix(b"\r"):
                yield number, text
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise WrongFile(file, f"cannot be read: {reason}", number + 1) from None


def _lines(file: Path) -> Iterator[bytes]:
    if file.name.endswith(".zst"):
        yield from _zst_lines(file)
        return
    with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
        yield from stream


def _zst_lines(file: Path) -> Iterator[bytes]:
    """zstandard's own reader takes a file that was cut short for a whole one; `eof` tells."""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    text = b""
    with file.open("rb") as stream:
        while data := stream.read(READ_BYTES):
            while data:  # a file may hold several frames, one after the other
                if decoder.eof:
                    decoder = zstandard.ZstdDecompressor().decompressobj()
                *lines, text = (text + decoder.decompress(data)).split(b"\n")
                data = decoder.unused_data
                yield from lines
    if not decoder.eof:
        raise EOFError("the archive ends before its end")
    yield text
