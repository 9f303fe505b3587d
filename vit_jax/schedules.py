"""Numbers that move with the step: learning rate, weight decay, the teacher's momentum.

A schedule is a function of the step, whose unit is that of the durations it was made with.
"""

import jax
import numpy as np
from jax import numpy as jnp


def cosine_schedule(
    peak,
    total,
    *,
    warmup=0,
    warmup_start=0.0,
    end=0.0,
    warmup_prefix=False,
    warmup_reaches=False,
):
    """Linear warm-up, then half a cosine. -> schedule(t)

    schedule(0) = warmup_start; schedule(t >= total) = end. t: numbers or NumPy arrays give
    float64 NumPy; JAX arrays give JAX arrays. All durations in the unit of t, may be fractional.
    warmup_prefix: the cosine runs from `warmup` to `total` (MAE, big_vision; timm's warmup_prefix
    with t_initial = total - warmup). Else it runs from 0 and the warm-up hides its beginning
    (timm's default, so DeiT), and the rate right after the warm-up is slightly below the peak.
    warmup_reaches: the last of its steps has the peak already (DINO, with warmup_prefix).
    """
    start = warmup if warmup_prefix else 0
    slope = (peak - warmup_start) / max(warmup - warmup_reaches, 1)

    def schedule(t):
        xp = jnp if isinstance(t, jax.Array) else np
        t = xp.asarray(t, None if xp is jnp else np.float64)
        progress = xp.clip((t - start) / max(total - start, 1e-9), 0, 1)
        cosine = end + (peak - end) * 0.5 * (1 + xp.cos(np.pi * progress))
        rate = xp.where(t < total, cosine, end)
        if not warmup:
            return rate[()]
        return xp.where(t < warmup, warmup_start + t * slope, rate)[()]

    return schedule


def by_epoch(schedule, steps_per_epoch):
    """The schedule as DeiT's main.py uses timm's: it moves after an epoch, and then to the value of
    that one's start, so that the first two epochs are alike."""

    def moved(t):
        epoch = (jnp if isinstance(t, jax.Array) else np).floor(t / steps_per_epoch + 1e-6)
        return schedule((epoch - (epoch > 0)) * steps_per_epoch)

    return moved
