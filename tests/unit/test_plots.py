"""Pictures are PNGs of the size the UI shows, from any curves, made without the state that pyplot shares."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from dash_pipeline.models.plots import Curves, figures

NAMES = ["roc", "precision_recall", "calibration", "importance"]
CURVES = Curves(
    fpr=np.array([0, 0, 0.1, 0.4, 1]),
    tpr=np.array([0, 0.5, 0.8, 1, 1]),
    recall=np.array([0, 0.5, 0.8, 1]),
    precision=np.array([1, 1, 0.9, 0.3]),
    predicted=np.array([0.05, 0.3, 0.9]),
    observed=np.array([0.0, 0.4, 1.0]),
    rows=np.array([200, 30, 50]),
    importance={f"feature {i}": float(i) for i in range(40)},
    positives=0.3,
    auc=0.93,
    average_precision=0.91,
)
NOTHING = Curves(*(np.empty(0) for _ in range(6)), np.empty(0, dtype=np.int64), {}, 0.0, float("nan"), float("nan"))


@pytest.mark.parametrize("curves", [CURVES, NOTHING], ids=["usual", "nothing"])
def test_four_pictures_of_the_uis_size(curves: Curves) -> None:
    found = figures(curves, "pool_risk")
    assert list(found) == NAMES
    for name, png in found.items():
        assert png.startswith(b"\x89PNG\r\n\x1a\n"), name
        assert struct.unpack(">II", png[16:24]) == (640, 480), name


def test_a_bin_without_rows_is_left_out() -> None:
    empty = replace(CURVES, predicted=np.append(CURVES.predicted, np.nan), observed=np.append(CURVES.observed, np.nan),
                    rows=np.append(CURVES.rows, 0))  # fmt: skip
    assert figures(empty)["calibration"] == figures(CURVES)["calibration"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("roc", {"tpr": np.array([0, 0.2, 0.4, 0.6, 1])}),
        ("precision_recall", {"precision": np.array([1, 0.4, 0.4, 0.3])}),
        ("calibration", {"observed": np.array([0.2, 0.4, 0.6])}),
        ("importance", {"importance": {"a": 1.0, "b": 2.0}}),
    ],
)
def test_a_picture_shows_its_own_numbers_only(name: str, change: dict[str, object]) -> None:
    before, after = figures(CURVES), figures(replace(CURVES, **change))  # type: ignore[arg-type]
    assert {one for one in NAMES if before[one] != after[one]} == {name}


def test_threads_draw_each_their_own() -> None:
    expected, found = figures(CURVES), {}
    workers = [threading.Thread(target=lambda i=i: found.update({i: figures(CURVES)})) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [found[i] == expected for i in range(4)] == [True] * 4


def test_nothing_is_shared_and_importing_costs_nothing() -> None:
    code = (
        "import sys; from dash_pipeline.models import plots; assert 'matplotlib' not in sys.modules;"
        " import numpy as np; e = np.empty(0); plots.figures(plots.Curves(e, e, e, e, e, e, e, {}, 0, 0, 0));"
        " assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
