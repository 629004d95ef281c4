"""A model card's pictures, as PNG for the UI.

Belongs here: drawing what evaluation measured. Does not belong here: measuring (`evaluation.py`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dash_pipeline.models.spec import Floats

_INCHES, _DPI = (6.4, 4.8), 100
_LINE, _FAINT = "#1f5fa8", "#9aa3ad"
# Standard deviations of a 95 % interval.
_Z = 1.96
# More features than that are not legible.
_FEATURES = 15


@dataclass(frozen=True)
class Curves:
    """What is drawn, of rows that the model was not trained on.

    `fpr`, `tpr`: the ROC curve, both increasing. `recall`, `precision`: the other curve, ordered by recall.
    `predicted`, `observed`, `rows`: calibration, by bin of the score: its mean, the share of positives, how many rows.
    `importance`: feature -> gain, in any unit. `positives`: share of positives among all rows. `auc`,
    `average_precision`: the areas below the curves.
    """

    fpr: Floats
    tpr: Floats
    recall: Floats
    precision: Floats
    predicted: Floats
    observed: Floats
    rows: npt.NDArray[np.int64]
    importance: Mapping[str, float]
    positives: float
    auc: float
    average_precision: float


def figures(curves: Curves, title: str = "") -> dict[str, bytes]:
    """PNGs of 640 x 480: roc, precision_recall, calibration, importance; `title` stands above each."""
    return {
        "roc": _roc(curves, title),
        "precision_recall": _precision_recall(curves, title),
        "calibration": _calibration(curves, title),
        "importance": _importance(curves.importance, title),
    }


def _roc(curves: Curves, title: str) -> bytes:
    axes = _axes(title, "share of negatives called positive", "share of positives found")
    axes.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1)
    axes.plot(curves.fpr, curves.tpr, color=_LINE, linewidth=2, label=f"ROC, area {curves.auc:.4f}")
    return _square(axes, "lower right")


def _precision_recall(curves: Curves, title: str) -> bytes:
    axes = _axes(title, "share of positives found (recall)", "right among those called positive (precision)")
    label = f"all called positive: {curves.positives:.3f}"
    axes.axhline(curves.positives, color=_FAINT, linestyle="--", linewidth=1, label=label)
    label = f"average precision {curves.average_precision:.4f}"
    axes.plot(curves.recall, curves.precision, color=_LINE, linewidth=2, label=label)
    return _square(axes, "lower left")


def _calibration(curves: Curves, title: str) -> bytes:
    """Bars are 95 % intervals (Wilson's): of few rows nothing can be said, and the picture shows that."""
    axes = _axes(title, "probability said", "share of positives")
    axes.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1, label="perfect")
    some = curves.rows > 0
    said, seen, rows = curves.predicted[some], curves.observed[some], curves.rows[some]
    middle = (seen + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z * np.sqrt(seen * (1 - seen) / rows + _Z**2 / (4 * rows**2)) / (1 + _Z**2 / rows)
    bars = np.maximum([seen - (middle - half), (middle + half) - seen], 0)
    axes.errorbar(said, seen, bars, color=_LINE, marker="o", capsize=3, linewidth=1.5, label=f"{rows.sum():,} rows")
    return _square(axes, "upper left")


def _importance(importance: Mapping[str, float], title: str) -> bytes:
    total = sum(importance.values()) or 1.0
    largest = sorted(importance.items(), key=lambda item: item[1])[-_FEATURES:]
    axes = _axes(title, "share of the gain, %", "")
    axes.barh([name for name, _ in largest], [100 * gain / total for _, gain in largest], color=_LINE)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=9)
    return _png(axes)


def _axes(title: str, x: str, y: str) -> Axes:
    """The axes of a figure of its own; pyplot's would be everybody's, and Dagster's runs have threads."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white", layout="constrained").subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _square(axes: Axes, legend: Literal["upper left", "lower left", "lower right"]) -> bytes:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc=legend, framealpha=0.9)
    return _png(axes)


def _png(axes: Axes) -> bytes:
    content = io.BytesIO()
    axes.figure.canvas.print_figure(content, format="png")
    return content.getvalue()
