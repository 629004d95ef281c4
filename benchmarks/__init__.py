"""Every speed figure of the README comes from a command in here: `python -m benchmarks [NAME ...]`.

Belongs here: load, measurement, the numbers. Does not belong here: anything a test asserts; tests are not timed.
"""
