"""Snapshots of what cannot be made anew, and their restore.

Belongs here: taking, keeping, restoring and comparing backups. Does not belong here: the archive of rows (`archive/`),
when any of it runs (`assets/lifecycle/`, `sensors/schedules.py`).
"""
