"""The local stack: real servers on this machine, for the demo, the tests and the benchmarks.

Belongs here: installing, configuring, starting, probing and stopping them, each clone its own.
Does not belong here: what the platform keeps in them (`topics.py`, `storage/`); Kubernetes (`deployments/`).
"""

from dash_pipeline.stack.progress import Progress
from dash_pipeline.stack.stack import Stack

__all__ = ["Progress", "Stack"]
