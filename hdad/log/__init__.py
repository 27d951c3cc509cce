"""The log on the device: format, geometry, recovery, and what writes, reads and inspects it."""
