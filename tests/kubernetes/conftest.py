"""The chart, rendered by Helm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

Helm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm's command line: `helm("lint", CHART)`."""
    program = os.environ.get("DASH_HELM")
    if not program:
        pytest.skip("no Helm: set DASH_HELM to its program")
    return lambda *words: subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )
