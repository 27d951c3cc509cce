"""A worker's process: reads its lanes from Redis, runs the pipeline over each batch, puts frames into its ring."""
