"""Measures hdad beside what it competes with, in one run, on the same data. Run by scripts/bench; nothing here is collected by pytest."""
