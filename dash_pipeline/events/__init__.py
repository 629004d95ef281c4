"""What is on Kafka: message types, JSON -> polars frames, ABI decoding, fork choice. Pure: no server is called
from here."""
