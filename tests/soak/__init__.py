"""A long run under load and faults: everything once, and nothing that grows."""
