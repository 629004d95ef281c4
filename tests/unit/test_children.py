"""Children end with us, also when we are killed before they have begun."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = (
    "import sys, time; from dash_pipeline import children;"
    "print(children.start(['sleep', sys.argv[1]]).pid, flush=True); time.sleep(60)"
)
PATIENCE_S = 20.0


def is_running(pid: int, name: str) -> bool:
    """Whether the process is there, runs, and is still the one that was started."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" and name in command


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_a_child_ends_when_its_parent_is_killed(
    delay_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a delay: the parent is dead before the child has tied its life to it."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv on this machine")
    slow = tmp_path / "setpriv"
    slow.write_text(f'#!/bin/sh\nsleep {delay_s}\nexec {setpriv} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    with subprocess.Popen([sys.executable, "-c", PARENT, "61.25"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if not delay_s:
            deadline = time.monotonic() + PATIENCE_S
            while not Path(f"/proc/{child}/cmdline").read_text().startswith("sleep"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        parent.send_signal(signal.SIGKILL)

    time.sleep(delay_s)
    deadline = time.monotonic() + PATIENCE_S
    while is_running(child, "61.25"):
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.05)
