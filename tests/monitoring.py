"""Debian's Prometheus, Alertmanager and Pushgateway, for tests: unpacked beside the other servers, not installed."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dash_pipeline.stack import debian, install

PACKAGES = ("prometheus", "promtool", "prometheus-alertmanager", "prometheus-pushgateway", "libc6")
# Debian's Alertmanager knows one place for its templates, which it takes root to write to; this is as long.
_INSTALLED = b"/usr/share/prometheus/alertmanager"
_HERE = b"./" * 12 + b"alertfiles"


def programs(opt: Path) -> Path:
    """The folder of the programs: prometheus, promtool, prometheus-alertmanager, amtool, prometheus-pushgateway."""

    def build(folder: Path) -> None:
        log, alertmanager = folder / "setup.log", folder / "usr" / "bin" / "prometheus-alertmanager"
        debian.unpack(list(PACKAGES), folder, log)
        debian.make_self_contained(folder, alertmanager.parent, log)
        code = alertmanager.read_bytes()
        assert _INSTALLED in code
        alertmanager.write_bytes(code.replace(_INSTALLED, _HERE))

    return install.once(opt, "monitoring", [*PACKAGES, _HERE.decode()], build) / "usr" / "bin"


def alertmanager_files(tools: Path, folder: Path) -> None:
    """Put the files that Alertmanager looks for into the folder that it is started in."""
    (folder / Path(_HERE.decode()).name).symlink_to(tools.parent / "share" / "prometheus" / "alertmanager")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


@contextmanager
def running(command: Sequence[str | Path], ready: str, folder: Path) -> Iterator[None]:
    """A server, from when `ready` (a URL) answers 200 until the block ends."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("w") as stream, subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream) as process:
        try:
            deadline = time.monotonic() + 30
            while not _answers(ready):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
