"""Redis as a source of lanes: what its streams look like, and the only code that talks to it."""
