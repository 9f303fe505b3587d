"""Model analysis on arrays: attention, receptive fields, Grad-CAM and weight statistics."""

from vit_jax.analysis.attention import mass_mask, rollout
from vit_jax.analysis.receptive_field import attention_distance, attention_entropy

__all__ = ["attention_distance", "attention_entropy", "mass_mask", "rollout"]
