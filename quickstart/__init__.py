"""`make quickstart`: the whole pipeline at its smallest size, on a CPU."""
