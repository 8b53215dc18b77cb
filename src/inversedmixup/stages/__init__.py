"""The three stages, one file each: a config, a run, a result."""
