"""Tests on real SCSI, device-mapper, reservations and Fibre Channel, in a small VM: see ``conftest`` for how they get into it."""
