"""What has had its time is taken away: documents, half-written objects, tables of connections that are gone.

Belongs here: one module for each server that is swept. Does not belong here: rows (`archive/`), snapshots (`backups/`),
Dagster's own records (`resources/instance.py`: they need its instance), when any of it runs (`sensors/schedules.py`).
"""
