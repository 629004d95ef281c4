"""Backups, and the proof that they can be restored."""

from dash_pipeline.definitions import build_defs

defs = build_defs("lifecycle")
