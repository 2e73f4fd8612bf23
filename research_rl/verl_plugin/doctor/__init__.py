"""``research-rl doctor``: finds what is wrong with a set-up before anything is started.

Each file has the checks of one theme; `examine` lists those of the environment and of a recipe, `supervised` those of a supervised recipe.
"""
