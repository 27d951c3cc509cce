"""Coverage-guided fuzzing of every decoder; run by `scripts/check fuzz`."""
