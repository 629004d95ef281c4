"""Assets of location `lifecycle`."""
