"""Counters and the lane table in shared memory, and how they look to Prometheus."""
