"""From dumps to passages, over all cores, in bounded memory, resumable."""
