"""Construction of a run's objects from its configuration. Only this room and the commands read configurations."""
