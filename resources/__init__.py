"""Dagster resources: how assets and sensors reach the platform's servers.

Belongs here: thin ConfigurableResources over functions of `dash_pipeline`; a test replaces them by name.
Does not belong here: the work itself, and values: those come from `dash_pipeline.settings`, never from run config,
so that no secret is stored with a run.

Clients are imported inside the methods: a code location loads in a second, and pays for a client when it uses it.
"""
