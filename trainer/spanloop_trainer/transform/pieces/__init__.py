"""A window in parts that fit in memory: what is slim, what is long, and where it lies."""
