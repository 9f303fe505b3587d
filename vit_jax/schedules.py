"""Schedules of the learning rate, the weight decay and the momentum of DINO's teacher.

A schedule is a function of time t, in the unit of its durations: optimizer steps or epochs.
"""

import jax
import numpy as np
from jax import numpy as jnp


def cosine_schedule(
    peak, total, *, warmup=0, warmup_start=0.0, end=0.0, warmup_prefix=False, warmup_reaches=False
):
    """Create a schedule with linear warmup followed by half-cosine decay.

    Args:
      peak: value at the end of the warmup.
      total: total duration; schedule(t) = end for t >= total. All durations have the unit of t and
        may be fractional.
      warmup: duration of the warmup.
      warmup_start: schedule(0), if there is a warmup.
      end: final value.
      warmup_prefix: whether the cosine starts after the warmup, at t = warmup (MAE, big_vision;
        timm's warmup_prefix with t_initial = total - warmup). If False, it starts at t = 0, the
        warmup replaces its first part, and the value right after the warmup is slightly below the
        peak (timm's default, and therefore DeiT's).
      warmup_reaches: whether the last step of the warmup already has the peak value (DINO, together
        with warmup_prefix).

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
    """Update a schedule once per epoch, one epoch late, as DeiT's main.py does.

    DeiT steps timm's scheduler after each epoch with the index of that epoch, so that the first two
    epochs have the same value.

    Args:
      schedule: function of the optimizer step.
      steps_per_epoch: optimizer steps per epoch; may be fractional.
    """

    def epoch_schedule(t):
        epoch = (jnp if isinstance(t, jax.Array) else np).floor(t / steps_per_epoch + 1e-6)
        return schedule((epoch - (epoch > 0)) * steps_per_epoch)

    return epoch_schedule
