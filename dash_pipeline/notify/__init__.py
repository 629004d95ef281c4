"""What operators are told: one way for failed runs, lag, dead letters, overdue drills.

Belongs here: notices, the channels they go to, telling and delivering them. Does not belong here: what is worth a
notice (`sensors/`), alerts about the market (`dash_pipeline/alerts/`), whose requests, signature and pauses are used.
"""
