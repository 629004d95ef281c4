"""Who owns what: the teams that alerts are routed to.

Belongs here: owners' names and the run tag that carries them. Does not belong here: addresses (`DASH_OWNER_ROUTES`).
"""

CHAIN_DATA = "team:chain-data"
SEARCH = "team:search"
ANALYTICS = "team:analytics"
INTELLIGENCE = "team:intelligence"
OPERATIONS = "team:operations"

#: On every job's runs, so that notices of failures know the owner whatever location the job is from.
OWNER_TAG = "dash/owner"
