"""Dagster assets, thin: name, lineage, metadata, checks.

Belongs here: what is shown in the asset graph and which function of `dash_pipeline` makes it.
Does not belong here: the work itself (`dash_pipeline/`), and when it is done (`sensors/`).
"""
