"""Fibre Channel, multipath and NVMe over Fabrics under the log's device: facts, the edges that read them, and what is wrong (health)."""
