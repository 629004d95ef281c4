"""Rows on S3: seven days are hot, everything is kept.

Belongs here: taking rows out of the hot tables into Parquet objects, the care of those objects, and deriving anew what
follows from them. Does not belong here: reading hot and archived rows as one (`storage/history.py`), backups
(`backups/`).
"""
