"""`make quickstart`: the whole main job at its smallest size, on a CPU."""
