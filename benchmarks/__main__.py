"""`python -m benchmarks [NAME ...]`: run benchmarks on a stack of their own, that begins empty; print the figures.

`python -m benchmarks autoscale_sim [OPTION ...]` simulates, and needs no stack.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

NAMES = ("drain", "live", "search", "api", "detection", "scoring", "spike", "archive", "restore")


def main(names: list[str]) -> None:
    """Run the named benchmarks (all without names), one after the other."""
    home = Path(os.environ.get("DASH_BENCH_DIR") or ".stack/bench").absolute()
    os.environ.setdefault("DASH_OPT_DIR", str(Path(".stack/opt").absolute()))
    os.environ["DASH_STACK_DIR"] = str(home)
    from dash_pipeline.stack import Stack

    stack = Stack.at(home, port_offset=2000)
    stack.reset()
    # In one session, as the platform's own runs are with its servers: where the kernel shares the processors between
    # sessions (sched_autogroup), whoever measures from another one waits for its turn up to a tenth of a second.
    stack.up(only=["kafka", "timescale", "opensearch", "s3"], detached=False)
    try:
        for name in names or NAMES:
            figures = import_module(f"benchmarks.{name}").run(stack)
            about = {"benchmark": name, "date": datetime.date.today().isoformat(), "machine": machine()}
            print(json.dumps(about | figures), flush=True)
    finally:
        stack.down()


def machine() -> str:
    """What it ran on: processors, memory, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    system = f"{platform.system()} {platform.machine()}"
    return f"{os.cpu_count()} cores, {memory} GiB, {system}, Python {platform.python_version()}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["autoscale_sim"]:
        from benchmarks import autoscale_sim
        from dash_pipeline.errors import run_script

        run_script(lambda: autoscale_sim.main(sys.argv[2:]))
    else:
        main(sys.argv[1:])
