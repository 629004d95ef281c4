"""Models' raw material: what the platform's own rows say of a pool, and labelled rows of the local market.

Belongs here: the feature definitions that training and scoring share. Does not belong here: reading the rows
(`storage/pool_history.py`), orchestration (`assets/`).
"""
