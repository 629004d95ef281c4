"""Models: labels and features in, calibrated probabilities out; versions on S3; champions in memory.

Belongs here: everything that knows LightGBM, and the feature definitions that training and scoring share. Does not
belong here: orchestration (`assets/intelligence/`), and what a score leads to (`dash_pipeline/alerts/`).
"""
