"""Scores of predictions, shared by training and evaluation."""

import jax.numpy as jnp


def top_k_credit(logits, labels, k):
    """Compute the top-k credit of each row: the expected top-k accuracy with ties broken at random.

    With `greater` classes above the true class and `tied` classes equal to it, which include
    itself, the credit is clip((k - greater) / tied, 0, 1). A NaN of another class counts as
    greater. A row whose true logit is NaN, or whose label is out of range, earns 0.

    Args:
      logits: [b, c].
      labels: int [b].
      k: number of guesses.

    Returns:
      float32 [b], from 0 to 1.
    """
    # take_along_axis wraps negative indices, and fills with NaN beyond the last class.
    index = jnp.where(labels < 0, logits.shape[-1], labels)[:, None]
    true_logit = jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)
    greater = (~(logits <= true_logit)).sum(-1)
    tied = (logits == true_logit).sum(-1)
    credit = jnp.clip((k - greater) / jnp.maximum(tied, 1), 0, 1)
    return jnp.where(tied > 0, credit, 0).astype(jnp.float32)
