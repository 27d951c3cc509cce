"""Simulation: the real code of hdad on a disk, a Redis and a clock that obey a seed."""
