"""Reinforcement learning of reasoning with search: methods, rollout, rewards."""
