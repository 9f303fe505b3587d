"""Print the stages of a model with output shapes and parameters, and its FLOPs and memory.

python -m vit_jax.tools.summary --model=B/16
python -m vit_jax.tools.summary --config=configs/dino.py:s16_300 --drawings=figures

No weights are allocated. --drawings writes SVG diagrams labeled with the shapes of the model: its
stages, self-attention, multi-head attention, patch embedding, position embedding and, with a DINO
config, student and teacher. It also writes a chart of the model's size next to the published sizes.
"""

import sys
from dataclasses import replace
from pathlib import Path

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.flops import count_flops

DEFAULT_CLASSES = 1000  # those of ImageNet-1k


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_string(
        "model", None, "model name, with overrides: B/16 or vit_base_patch16_224,depth=4"
    )
    flags.DEFINE_integer(
        "num_classes", None, "number of classes (default: the dataset's; for --model: 1000)"
    )
    flags.DEFINE_string("drawings", None, "directory to write SVG diagrams to")


def main(flags):
    if (flags.model is None) == (flags.config is None):
        raise UserError("pass either --model=NAME or --config=FILE; see --help")
    name, config = resolve_model(flags.model, flags.config, flags.num_classes)
    if flags.drawings:
        create(flags.drawings)  # reports an invalid path before JAX is imported
    print(summary(name, config))
    if flags.drawings:
        print("\n".join(map(str, draw(flags.drawings, name, config, flags.config))))


def resolve_model(name, config, num_classes=None):
    """Return the name of a model and its `ViTConfig` or `ResNetConfig`.

    Args:
      name: model name with overrides; used if there is no config.
      config: config of a run, or None.
      num_classes: number of classes; None: the config's or its dataset's, or 1000 for a name.

    Raises:
      UserError: if the name is unknown, or options cannot be combined.
    """
    if config is None:
        return name, variants.parse(name, num_classes=num_classes)
    if num_classes is None and config.model.num_classes is None:
        num_classes = count_classes(config)
    model = variants.from_config(config.model, num_classes)
    if num_classes is not None:
        model = replace(model, num_classes=num_classes)
    return config.model.variant, model


def count_classes(config):
    """Return the number of classes of a config's data; if they cannot be read, print a note."""
    from vit_jax import data
    from vit_jax.tools.compile_check import known_dataset

    if config.data.class_names:
        return len(config.data.class_names)
    if known := known_dataset(config):
        return known[1]
    try:
        return data.make(config, config.data.train).num_classes
    except UserError:
        note = f"note: {DEFAULT_CLASSES} classes are assumed, as the data cannot be read; "
        print(f"{note}pass --num_classes to set another number", file=sys.stderr)
        return DEFAULT_CLASSES


def summary(name, config):
    """Format the stages, FLOPs and memory of a model as text.

    Args:
      name: name of the model.
      config: its `ViTConfig` or `ResNetConfig`.
    """
    from vit_jax.analysis import stages
    from vit_jax.figures.diagrams import stage_title

    rows, total = stages.from_config(config)
    rows = [(stage_title(stage), *rest) for stage, *rest in rows]
    rows += [("total", "", total)]
    width = max(len(stage) for stage, _, _ in rows) + 2
    if isinstance(config, variants.ResNetConfig):
        sizes = f"stages of {', '.join(map(str, config.layers))} {config.block} blocks"
    else:
        sizes = f"depth {config.depth}, {config.num_heads} heads"
    lines = [f"{'stage':{width}}{'shape per image':20}{'parameters':>14}"]
    for stage, shape, count in rows:
        lines.append(f"{stage:{width}}{shape:20}{f'{count:,}' if count else '':>14}".rstrip())
    flops = count_flops(config)
    lines.append(
        f"\n{flops / 1e9:.4g} GFLOPs per image for a forward pass ({flops / 2e9:.4g} GMACs; one "
        "multiply-add is 2 FLOPs), 3 times that for a training step\n"
        f"{4 * total / 1e6:,.4g} MB of weights in float32, twice that for the state of AdamW"
    )
    return "\n".join([f"{name}: width {config.width}, {sizes}", "", *lines])


def create(folder):
    """Create the directory of the drawings and return its Path. Raises UserError."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--drawings={folder} cannot be written: {error.strerror}") from None
    return folder


def draw(folder, name, model, config=None):
    """Write SVG diagrams of a model.

    Args:
      folder: directory to write to; it is created if necessary.
      name: name of the model.
      model: its `ViTConfig` or `ResNetConfig`.
      config: config of a run, to also draw its objective; None: model only.

    Returns:
      The paths of the files.

    Raises:
      UserError: if the files cannot be written.
    """
    from vit_jax import models, objectives
    from vit_jax.analysis import stages, weight_stats
    from vit_jax.figures import diagrams, sizes

    folder = create(folder)
    drawings = {"whole": diagrams.whole(stages.from_config(model)[0], name)}
    if isinstance(model, variants.ViTConfig):
        parts = ("self_attention", "multi_head", "patch_embedding", "positions")
        drawings |= {part: getattr(diagrams, part)(model) for part in parts}
    if config is not None:
        objective = objectives.make(models.build(model), config, steps_per_epoch=1)
        if part := objective.drawing:
            drawings[part] = getattr(diagrams, part)(model, config)
    bars = sizes.bars(weight_stats.compare_with_published(name.partition(",")[0], model))
    try:
        for part, text in drawings.items():
            (folder / f"{part}.svg").write_text(text, encoding="utf-8")
        bars.savefig(folder / "sizes.svg")
    except OSError as error:
        raise UserError(f"--drawings={folder} cannot be written: {error.strerror}") from None
    return [folder / f"{part}.svg" for part in (*drawings, "sizes")]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
