"""From anomalies to predictions and alerts, and the models' life."""

from dash_pipeline.definitions import build_defs

defs = build_defs("intelligence")
