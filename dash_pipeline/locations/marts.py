"""What analysts read: dbt models on the hot tables."""

from dash_pipeline.definitions import build_defs

defs = build_defs("marts")
