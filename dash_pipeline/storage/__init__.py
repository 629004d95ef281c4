"""Where rows, documents and objects are kept: TimescaleDB, OpenSearch, S3. No dagster in here."""
