"""From Kafka to the hot tables: topics as external assets, tables as one multi-asset per chain, checks per block."""
