"""The platform's own code: events, micro-batches, storage, models.

Belongs here: everything that runs, is tested and is benchmarked without an orchestrator.
Does not belong here: Dagster definitions. Only `definitions.py` and `locations/` import dagster.
"""

import os

# Frames here are small and lanes scale by processes: handing a few microseconds of work to a pool of threads costs more
# than the work. Has to be said before polars is imported.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
