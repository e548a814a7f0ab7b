"""How a training is laid out over processes; one process so far."""
