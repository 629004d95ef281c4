"""Anomalies: what happens to a pool that should not happen; pure functions on frames.

Belongs here: metrics, thresholds, who is behind it. Does not belong here: reading windows and storing what was found
(`storage/anomalies.py`, `microbatch/detect.py`), and what follows from it (`predictions/`).
"""
