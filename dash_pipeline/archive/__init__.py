"""Rows on S3: seven days are hot, everything is kept.

Belongs here: taking rows out of the hot tables into Parquet objects, and the care of those objects. Does not belong
here: reading hot and archived rows as one (`storage/history.py`), backups (`backups/`).
"""
