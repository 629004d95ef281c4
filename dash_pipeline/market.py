"""The local market: a real EVM node, the generator that trades on it, and the recording of it.

Belongs here: installing and running what `deployments/local/market/` holds.
Does not belong here: who trades what (the generator's scripts), or publishing (`feed/`).

    python -m dash_pipeline.market record      makes deployments/local/market/recorded/ anew
    python -m dash_pipeline.market live        a market that is made while one looks
"""

from __future__ import annotations

import filecmp
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import typer
import zstandard

from dash_pipeline import children
from dash_pipeline.errors import DashError, Unavailable, run_script
from dash_pipeline.feed.exporter import Exporter, ensure_exporter, opt_dir
from dash_pipeline.feed.node import head_of
from dash_pipeline.locks import locked
from dash_pipeline.topics import TYPES

SOURCES = Path(__file__).parents[1] / "deployments" / "local" / "market"
RECORDED = SOURCES / "recorded"
ACCOUNTS, ETHER_EACH = 60, 1_000_000
START_S = 10.0
BATCH_S = 60.0
# Another one than the recorded market's: `anvil_live` in the registry.
LIVE_CHAIN_ID = 31_338
# As small as it gets: the recording is in the repository, and is made rarely.
ZSTD_LEVEL = 19
ZSTD_WINDOW_LOG = 26
#: Midnight of 1 June 2024, UTC: the recording is the same day's market whenever it is made.
RECORDED_START = 1_717_200_000


def install(home: Path) -> Path:
    """Anvil, the contracts and the generator, in `home` rather than in the clone; seconds, and once.

    Raises DashError when Node.js is missing, Unavailable when npm fails.
    """
    for program in ("node", "npm"):
        if not shutil.which(program):
            raise DashError(f"{program} is missing: install the packages nodejs (18 or newer) and npm")
    with locked(home.with_name(f".{home.name}.lock")):
        home.mkdir(parents=True, exist_ok=True)
        for source in [*SOURCES.glob("*.mjs"), SOURCES / "package.json", SOURCES / ".npmrc"]:
            if not _same(source, home / source.name):  # another process may be running it
                shutil.copy(source, home)
        lock, installed = SOURCES / "package-lock.json", home / ".installed.json"
        if not _same(lock, installed):
            shutil.copy(lock, home)
            done = subprocess.run(["npm", "ci", "--silent"], cwd=home, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unavailable(f"npm ci in {home} failed: {' '.join((done.stderr or done.stdout).split())}")
            shutil.copy(lock, installed)
    return home


def _same(file: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(file, other, shallow=False)


def market_home() -> Path:
    """Where the market's programs are installed."""
    return opt_dir() / "market"


@contextmanager
def anvil(home: Path, port: int, *options: str) -> Iterator[str]:
    """A node on 127.0.0.1 for as long as the block lasts; gives its URL.

    It mines when it is told to, and keeps transactions in the order in which they came. Raises Unavailable when it
    does not start.
    """
    program = home / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--silent", "--no-mining", "--order", "fifo"]
    accounts = ["--accounts", str(ACCOUNTS), "--balance", str(ETHER_EACH)]
    with children.running([*command, *accounts, *options], stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        _await_node(url, process)
        yield url


def _await_node(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            head_of(url)
            return
        except Unavailable:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"anvil did not start at {url}") from None
            time.sleep(0.05)


def generator(home: Path, url: str, options: Sequence[str]) -> list[str]:
    """The command that makes a market on the node at `url`, and prints its labels."""
    return ["node", str(home / "main.mjs"), "--rpc", url, *options]


def generate(home: Path, url: str, options: Sequence[str]) -> bytes:
    """Make a market on the node at `url`; its labels, as JSON. Raises DashError when the generator fails."""
    done = subprocess.run(generator(home, url, options), stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise DashError(f"the generator failed with exit code {done.returncode}; its output is above")
    return done.stdout


@contextmanager
def live_market(port: int, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A market that is made while the block lasts, a block a second from now on: the node's URL, and the generator."""
    home, now = install(market_home()), str(int(time.time()))
    pace = ["--start", now, "--spacing", "1", "--interval", "1", *options]
    with (
        anvil(home, port, "--timestamp", now, "--chain-id", str(LIVE_CHAIN_ID)) as url,
        children.running(generator(home, url, pace), stdout=subprocess.DEVNULL) as process,
    ):
        yield url, process


def record(program: Path, url: str, folder: Path) -> dict[str, int]:
    """The node's whole chain as `<type>.jsonl.zst`, line by line as ethereum-etl prints it; how many of each type.
    Raises Unavailable when the exporter stops writing."""
    counts: dict[str, int] = {}
    last = head_of(url)
    with ExitStack() as stack:
        files = {type_: stack.enter_context(_archive(folder / f"{type_}.jsonl.zst")) for type_ in TYPES}
        exporter = stack.enter_context(Exporter(program, url, 0, list(TYPES)))
        block = -1
        while block < last:
            batch = exporter.next_batch(BATCH_S)
            if not batch:
                raise Unavailable(f"ethereum-etl wrote nothing for {BATCH_S:g} s: {exporter.last_words()}")
            for message, line in batch:
                files[message.type].write(line + b"\n")
                counts[message.type] = counts.get(message.type, 0) + 1
                block = max(block, message.block or 0)
    return counts


@contextmanager
def _archive(file: Path) -> Iterator[Any]:
    parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, window_log=ZSTD_WINDOW_LOG)
    with file.open("wb") as out, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out) as writer:
        yield writer


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the commands

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("record", context_settings=_PASSED_ON)
def record_command(context: typer.Context, folder: Path = RECORDED) -> None:
    """Make a market and record it. Further options (--seed, --pools, --blocks) are the generator's."""
    program, home = ensure_exporter(print), install(market_home())
    folder.mkdir(parents=True, exist_ok=True)
    with anvil(home, free_port(), "--timestamp", str(RECORDED_START)) as url:
        labels = generate(home, url, ["--start", str(RECORDED_START), *context.args])
        (folder / "labels.json").write_bytes(labels)
        counts = record(program, url, folder)
    for type_ in set(TYPES) - set(counts):
        (folder / f"{type_}.jsonl.zst").unlink()
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {json.dumps(counts)}, {sum(counts.values()):,} messages, {size / 1e6:.2f} MB")


@app.command("live", context_settings=_PASSED_ON)
def live_command(context: typer.Context, port: int = 8545) -> None:
    """Run a node on PORT and mine a block of the market every second, until it is over or SIGTERM comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with live_market(port, *context.args) as (_, process):
        process.wait()


if __name__ == "__main__":
    run_script(app)
