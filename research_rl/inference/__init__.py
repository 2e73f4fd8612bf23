"""Inference: rollouts over a served model, under the protocol that it was trained with."""
