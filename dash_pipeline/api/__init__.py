"""The read API: what the platform knows, over HTTP, for programs (docs/api.md).

Belongs here: HTTP, and who may ask how much. Does not belong here: SQL and questions to the indexes
(`dash_pipeline/storage/`), and anything that writes. Nothing here imports dagster.
"""
