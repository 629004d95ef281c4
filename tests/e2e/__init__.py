"""A package, so that its Dagster ends with its last test."""
