"""Between the processes of one host: shared-memory rings, their doorbells, and the supervisor's command channel."""
