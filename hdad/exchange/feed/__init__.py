"""The log over TCP, for readers on hosts without the device: who serves it, and who reads it."""
