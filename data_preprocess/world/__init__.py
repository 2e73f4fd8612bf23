"""The fictional world: see `world.World`."""

from data_preprocess.world.world import SPLITS, Entity, Question, Split, World, describe

__all__ = ["SPLITS", "Entity", "Question", "Split", "World", "describe"]
