"""The last hours of a chain as one picture, for the UI.

Belongs here: drawing. Does not belong here: the numbers (`dash_pipeline/storage/health.py`).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from dash_pipeline.storage.health import STAGES, Course

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (6.4, 6.0), 80
_COLOURS = {"ingestion": "#1f5fa8", "processing": "#d98e04", "output": "#2e8b57", "end_to_end": "#5b6770"}
# Dagster keeps a picture with every materialisation: few colours make it half the size.
_PALETTE = 64


def picture(found: Course, title: str) -> bytes:
    """A PNG of 512 x 480 over time (UTC): latency by stage (p50, and the whole's p99, logarithmic), events/s, lag."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white", layout="constrained")
    latency, rate, lag = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    for stage in STAGES:
        colour = _COLOURS[stage]
        latency.plot(found.at, _numbers(found.p50[stage]), color=colour, linewidth=1.5, label=stage.replace("_", " "))
    worst = _numbers(found.p99["end_to_end"])
    latency.plot(found.at, worst, color=_COLOURS["end_to_end"], linewidth=1, linestyle=":", label="its p99")
    rate.plot(found.at, found.events_per_s, color=_COLOURS["ingestion"], linewidth=1.5)
    lag.plot(found.at, found.lag, color=_COLOURS["processing"], linewidth=1.5)
    latency.set_yscale("log")
    latency.margins(y=0.3)  # room for the legend
    latency.legend(loc="upper left", fontsize=8, framealpha=0.9, ncols=2)
    for axes, label in ((latency, "latency, ms (p50)"), (rate, "events/s"), (lag, "events that wait")):
        _tidy(axes, label)
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    lag.xaxis.set_major_locator(locator)
    lag.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    latency.set_title(title, fontsize=10)
    return _png(figure)


def _numbers(values: list[float | None]) -> list[float]:
    """Logarithms want what is above 0; a gap stays one."""
    return [float("nan") if value is None else max(value, 0.01) for value in values]


def _tidy(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)


def _png(figure: object) -> bytes:
    from PIL import Image

    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")  # type: ignore[attr-defined]
    Image.open(drawn).convert("RGB").quantize(_PALETTE, Image.Quantize.MAXCOVERAGE).save(
        content, format="png", optimize=True
    )
    return content.getvalue()
