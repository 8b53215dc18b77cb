"""Studies on the evaluation sets: one question a module, one command, one JSON file for each finished cell."""
