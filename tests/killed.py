"""A process that works on the archive and dies where it is told to, as kill -9 does it. For integration tests."""

from __future__ import annotations

import pickle
import subprocess
import sys

from dash_pipeline.settings import Settings

# Told on stdin to go, so that a kill falls into its work and not into its start.
RUN = """
import importlib, os, pickle, signal, sys
from dash_pipeline.archive.derive import derive
from dash_pipeline.archive.retain import retain
from dash_pipeline.archive.rewrite import compact
import adbc_driver_postgresql.dbapi, boto3, pyarrow.parquet
settings, work, module, name, after = pickle.loads(bytes.fromhex(sys.argv[1]))
if module:
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, left = getattr(owner, name), [after]
    def die(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, die)
print("ready", flush=True)
sys.stdin.readline()
exec(work)
"""


def start(settings: Settings, work: str, module: str = "", name: str = "", after: int = 0) -> subprocess.Popen[str]:
    """A process that waits to be told to go, does `work`, and dies where it is told to: at the call of this name after
    so many of them."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, pickle.dumps((settings, work, module, name, after)).hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout
    assert run.stdout.readline() == "ready\n"
    return run


def go(run: subprocess.Popen[str]) -> None:
    """Let it begin."""
    assert run.stdin
    run.stdin.write("\n")
    run.stdin.flush()
