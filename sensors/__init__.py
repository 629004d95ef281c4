"""Everything that starts a run or reacts to one: the lag sensor, schedules, failure alerts.

Belongs here: when. Does not belong here: what is done (`assets/`) and the work itself (`dash_pipeline/`).
Decisions are pure functions, tested without servers; a sensor only reads, decides and answers.
"""
