"""The prediction engine: from anomalies to predictions and alerts.

Belongs here: what an anomaly leads to, in which order, in which transaction. Does not belong here: features and models
(`dash_pipeline/models/`), which anomalies people are told of (`dash_pipeline/alerts/`), SQL (`dash_pipeline/storage/`).
"""
