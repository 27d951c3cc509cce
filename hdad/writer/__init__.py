"""The writer's process: admits frames from the rings in order, makes groups of them durable, tells the workers."""
