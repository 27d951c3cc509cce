"""hdad: Redis Streams, through pinned worker processes, durably onto a log on a block device."""
