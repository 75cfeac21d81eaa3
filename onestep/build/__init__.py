"""From a configuration to objects: the only place, with the commands, that knows configurations."""
