"""What has had its time is taken away: documents, half-written objects, tables of connections that are gone, rows that
nobody can need any more.

Belongs here: a module for each thing that is swept. Does not belong here: history (`archive/`), snapshots (`backups/`),
Dagster's own records (`resources/instance.py`: they need its instance), when any of it runs (`sensors/schedules.py`).
"""
