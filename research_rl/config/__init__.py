"""verl defaults shared by all recipes; on Hydra's search path as pkg://research_rl.config."""
