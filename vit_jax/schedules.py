"""Schedules of the learning rate, the weight decay and the teacher's momentum.

A schedule is a function of the step, in the unit of the durations it was made with.
"""

import jax
import numpy as np
from jax import numpy as jnp


def cosine_schedule(
    peak, total, *, warmup=0, warmup_start=0.0, end=0.0, warmup_prefix=False, warmup_reaches=False
):
    """Linear warmup, then half a cosine.

    Args:
      peak: the largest value.
      total: duration; schedule(t) = end for t >= total. All durations are in the unit of t and may
        be fractional.
      warmup: duration of the warmup.
      warmup_start: schedule(0), where there is a warmup.
      end: the last value.
      warmup_prefix: the cosine runs from `warmup` to `total` (MAE, big_vision; timm's warmup_prefix
        with t_initial = total - warmup). Else it runs from 0, its beginning hidden by the warmup
        (timm's default, so DeiT's), and the value right after the warmup is slightly below the
        peak.
      warmup_reaches: the last step of the warmup has the peak already (DINO, with warmup_prefix).

    Returns:
      schedule(t): NumPy float64 for numbers and NumPy arrays, a JAX array for JAX arrays.
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
    """The schedule as DeiT's main.py steps timm's: after each epoch, to the value of that epoch's
    start, so that the first two epochs have the same value."""

    def moved(t):
        epoch = (jnp if isinstance(t, jax.Array) else np).floor(t / steps_per_epoch + 1e-6)
        return schedule((epoch - (epoch > 0)) * steps_per_epoch)

    return moved
