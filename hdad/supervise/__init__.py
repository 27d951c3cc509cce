"""The supervisor: starts, watches, restarts and drains the processes of one host. Never touches data."""
