"""The platform's own code: events, micro-batches, storage, models.

Belongs here: everything that runs, is tested and is benchmarked without an orchestrator.
Does not belong here: Dagster definitions. Only `definitions.py` and `locations/` import dagster.
"""
