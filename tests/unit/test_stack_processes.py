"""Finding and ending the processes of one stack, and of no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dash_pipeline.stack import processes
from dash_pipeline.stack.layout import Layout

SLEEP = "import time; print(flush=True); time.sleep(600)"
# Whatever the test's own process has blocked or ignores would be inherited.
POLITE = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); signal.pthread_sigmask(signal.SIG_SETMASK, []); "
) + SLEEP
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@contextmanager
def running(program: str, mark: str | None) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | ({processes.MARKER: mark} if mark else {})
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_only_processes_with_the_mark_belong_to_the_stack(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path, tmp_path)

    with running(SLEEP, layout.id) as ours, running(SLEEP, "other"), running(SLEEP, None):
        assert processes.of_stack(layout) == {ours.pid}


def test_the_caller_is_left_out(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path, tmp_path)
    code = (
        "from pathlib import Path; from dash_pipeline.stack.layout import Layout;"
        "from dash_pipeline.stack import processes;"
        f"print(processes.of_stack(Layout.at(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}))))"
    )

    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {processes.MARKER: layout.id},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.strip() == "set()"


def test_who_ignores_the_polite_signal_is_killed() -> None:
    with running(STUBBORN, None) as stubborn, running(POLITE, None) as polite:
        processes.end({stubborn.pid, polite.pid}, patience_s=3)

        assert stubborn.wait() == -signal.SIGKILL
        assert polite.wait() == -signal.SIGTERM


def test_a_tree_holds_children_and_their_children() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"

    with running(nested, None) as process:
        tree = processes.tree(process.pid)

        assert process.pid in tree
        assert len(tree) == 2
        assert processes.memory_bytes(tree) > processes.memory_bytes({process.pid}) > 1 << 20
        processes.end(tree, 5)


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert processes.memory_bytes({2**22 + 1}) == 0
