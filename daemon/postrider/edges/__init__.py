"""Where the process touches the world: clock, files, logs, network."""
