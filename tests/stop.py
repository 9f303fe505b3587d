"""A stop signal that tests set off at a step."""

from vit_jax.devices.distributed import StopSignal


class StopAfter(StopSignal):
    """True after `steps` calls; training calls it once per step."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def __call__(self):
        self.steps -= 1
        return self.steps < 0
