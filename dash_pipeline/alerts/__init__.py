"""Alerts: which anomalies people are told of, and that they hear of them.

Belongs here: the decision (`rules.py`), webhooks (`deliver.py`), what a person sees in a terminal (`show.py`).
Does not belong here: what is an anomaly (`dash_pipeline/anomalies/`), SQL (`dash_pipeline/storage/alerts.py`), the
search index (`dash_pipeline/storage/search/alerts.py`), what operators are told (`dash_pipeline/notify/`).
"""
