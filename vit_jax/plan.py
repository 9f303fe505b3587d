"""What the config and the data of a run determine, checked before a model is built.

Imports no JAX, so that mistakes are reported within seconds and before anything is written.
"""

import functools

from vit_jax import data, pretrained, variants
from vit_jax.config import peak_lr
from vit_jax.errors import UserError, printable
from vit_jax.schema import steps

MAX_LISTED_CLASSES = 5  # class names in the description of the data


class Plan:
    """The data, durations and model size of a run.

    Args:
      config: a checked config.
      resumes: whether the run has a checkpoint, so that config.model_init is not used.

    Attributes:
      config: the config.
      sources: {"train", "val", "test": `data.Slice`}.
      num_classes: number of classes of the data.
      model: `ViTConfig` or `ResNetConfig` of the model.
      steps_per_epoch: optimizer steps per epoch of the training split; may be fractional.
      total: number of optimizer steps of the whole run.
      intervals: {"log_every", "eval_every", "checkpoint_every": optimizer steps; 0: never}.
      notes: lines of text that a user should see.
      model_init: config.model_init, or "" if it is not used.

    Raises:
      UserError: if the data cannot be found or do not fit the config, the pretrained weights or a
        teacher do not fit the model, or the learning rate would not reach its peak.
    """

    def __init__(self, config, *, resumes=False):
        self.config = config
        self.sources = data.splits(config)
        source = self.sources["train"]
        self.num_classes = source.num_classes
        _check_classes(config, source)
        if len(source) < config.batch_size:
            raise UserError(
                f"config.batch_size = {config.batch_size} is larger than the training split, "
                f"{len(source)} images; set config.batch_size to {len(source)} or less"
            )
        self.model = variants.from_config(config.model, self.num_classes)
        self.steps_per_epoch = data.steps_per_epoch(config, source)
        self.total = self.steps("total_steps")
        keys = ("log_every", "eval_every", "checkpoint_every")
        self.intervals = {key: self.steps(key) for key in keys}
        self.warmup = steps(config.optim.warmup, self.steps_per_epoch)
        if config.optim.lr and self.warmup >= self.total:
            raise UserError(
                f"config.optim.warmup = '{config.optim.warmup}' ({self.warmup:,} steps) must be "
                f"shorter than config.total_steps = '{config.total_steps}' ({self.total:,} steps); "
                "otherwise, the learning rate would not reach its peak"
            )
        self.notes = [note for source in self.sources.values() for note in source.notes]
        self.model_init = "" if resumes else config.model_init
        if self.model_init:
            self.notes += pretrained.check_init(config, self.num_classes)
        self.notes += pretrained.check_teacher(config, source)
        if config.optim.end > peak_lr(config):
            self.notes.append(
                f"warning: the final learning rate, config.optim.end = {config.optim.end:g}, is "
                f"above the peak, {peak_lr(config):.3g}"
            )
        self.notes = list(dict.fromkeys(self.notes))

    def steps(self, key):
        """Return the duration config[key] in optimizer steps."""
        return steps(self.config[key], self.steps_per_epoch)

    def due(self, step, key):
        """Return whether the action with interval config[key] is due after `step` steps.

        It is due at multiples of the interval and at the last step, but not at a multiple that is
        less than half an interval before the last step.
        """
        interval = self.intervals[key]
        if step == self.total:
            return True
        return interval > 0 and step % interval == 0 and self.total - step >= interval / 2

    @functools.cached_property
    def identity(self):
        """The entry "data" of run.json: the classes, and a fingerprint of each split.

        A fingerprint depends on the names and sizes of files, not on their directory or times.
        """
        source = self.sources["train"]
        return {
            "num_classes": source.num_classes,
            "class_names": list(source.class_names),
            "train_images": len(source),
            "splits": {
                key: {"images": len(source), "fingerprint": source.fingerprint()}
                for key, source in self.sources.items()
            },
        }

    def check_identity(self, recorded):
        """Raise UserError if the data differ from those that a run was trained on.

        Args:
          recorded: the entry "data" of the run's run.json. Older runs have fewer facts.
        """
        current = self.identity
        old, new = recorded["class_names"], current["class_names"]
        if old != new:
            raise UserError(
                f"the run was trained on {len(old)} classes ({_names(old)}), but the data have "
                f"{len(new)} ({_names(new)}); restore the data or pass another --workdir"
            )
        facts = recorded.get("splits", {})
        if "train_images" in recorded:
            facts = {"train": {"images": recorded["train_images"]}} | facts
        for key in ("train", "val"):
            now = current["splits"][key]
            changed = {k: x for k, x in facts.get(key, {}).items() if now.get(k) != x}
            if changed:
                what = f"config.data.{key} = '{self.config.data[key]}'"
                if "images" in changed:
                    change = f"had {changed['images']:,} images when the run was started, and has "
                    change += f"{now['images']:,} now"
                else:
                    change = "has files whose names or sizes changed since the run was started"
                raise UserError(f"{what} {change}; restore the data or pass another --workdir")

    def describe(self):
        """Return the data, the duration and the learning rate as lines of text."""
        c = self.config
        source = self.sources["train"]
        names = {key: key if c.data[key] == key else f"{key} {c.data[key]}" for key in self.sources}
        sizes = ", ".join(f"{names[key]} ({len(s):,} images)" for key, s in self.sources.items())
        where = c.data.dataset if c.data.name == "tfds" else c.data.dir or c.data.name
        epochs = self.total / self.steps_per_epoch
        slices = [s for key, s in self.sources.items() if "[" in c.data[key]]
        orders = {s.source.order for s in slices if hasattr(s.source, "order")}
        classes = "1 class" if self.num_classes == 1 else f"{self.num_classes} classes"
        return [
            f"data: {printable(where)}: {sizes}; {classes}: {_names(source.class_names)}",
            *(f"the images of the slices are {order}" for order in orders),
            f"training: {self.total:,} steps of {c.batch_size} images, {epochs:.3g} "
            f"epoch{'s' * (epochs != 1)}",
            self._describe_lr(),
            *self.notes,
        ]

    def _describe_lr(self):
        c = self.config
        o = c.optim
        rule = (
            f" = {o.lr:g} x {c.batch_size} / {o.lr_batch} (optim.lr x batch_size / optim.lr_batch)"
        )
        text = f"learning rate: peak {peak_lr(c):.3g}{rule if o.lr_batch else ''}"
        if self.warmup:
            text += f", linear warmup from {o.warmup_start:g} to step {self.warmup:,}"
        text += f", cosine decay to {o.end:g} at step {self.total:,}"
        return text + (", updated once per epoch" if o.schedule_by == "epoch" else "")


def _check_classes(config, source):
    """Raise UserError if the classifier of the model is too small for the data."""
    count = config.model.num_classes
    if config.objective.name == "supervised" and source.num_classes < 2:
        raise UserError(
            f"config.data.train = '{config.data.train}' has one class, "
            f"{source.class_names[0]!r}; a classifier needs at least 2. To train without labels, "
            "use configs/dino_own_images.py"
        )
    if config.evaluators and source.num_classes < 2:
        raise UserError(
            f"config.data.train = '{config.data.train}' has one class, "
            f"{source.class_names[0]!r}, so that there is nothing to evaluate; pass "
            "--config.evaluators='()'"
        )
    if count and count < source.num_classes:
        raise UserError(
            f"config.model.num_classes = {count} is smaller than the number of classes of the "
            f"data, {source.num_classes}; set it to None or to at least {source.num_classes}"
        )


def _names(names):
    """Return the first class names as text."""
    shown = ", ".join(printable(name) for name in names[:MAX_LISTED_CLASSES])
    return shown + (", ..." if len(names) > MAX_LISTED_CLASSES else "")
