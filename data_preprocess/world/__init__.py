"""The fictional world: see `world.World`."""

from data_preprocess.world.world import SPLITS, Entity, Split, World, WorldQuestion, describe

__all__ = ["SPLITS", "Entity", "Split", "World", "WorldQuestion", "describe"]
