"""Between hosts: frames over TCP from a worker's ring here to the writer's ring there, and the writer's messages back."""
