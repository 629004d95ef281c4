"""Kafka to hot tables and search indexes, and the alerts about failed runs."""

from dash_pipeline.definitions import build_defs

defs = build_defs("ingestion")
