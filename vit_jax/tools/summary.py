"""The stages of a model with their shapes, parameters, FLOPs and memory. Allocates no weights.

python -m vit_jax.tools.summary --model=B/16
python -m vit_jax.tools.summary --config=configs/dino.py:s16_300 --drawings=figures

--drawings writes the stages, attention, its heads, patch embedding, positions, with a DINO config
also student and teacher, each as an SVG with this model's own shapes, and its size beside the
published ones.
"""

from dataclasses import replace
from pathlib import Path

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.flops import count_flops


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_string(
        "model", None, "a name, with overrides: B/16 or vit_base_patch16_224,depth=4"
    )
    flags.DEFINE_integer("num_classes", None, "classes (default: the data's; 1000 for --model)")
    flags.DEFINE_string("drawings", None, "folder to write SVG drawings of the model into")


def main(flags):
    if (flags.model is None) == (flags.config is None):
        raise UserError("pass either --model=NAME or --config=FILE; see --help")
    name, config = model_of(flags.model, flags.config, flags.num_classes)
    print(summary(name, config))
    if flags.drawings:
        print("\n".join(map(str, draw(flags.drawings, name, config, flags.config))))


def model_of(name, config, num_classes=None):
    """The name of a model, and its `ViTConfig` or `ResNetConfig`.

    Args:
      name: with overrides; None: that of the config.
      config: of a run, or None.
      num_classes: None: those of the config's data, or 1000.
    """
    if config is None:
        return name, variants.parse(name, num_classes=num_classes)
    if num_classes is None and config.model.num_classes is None:
        from vit_jax import data

        try:
            num_classes = data.make(config, config.data.train).num_classes
        except UserError as error:
            hint = "Or pass the number of classes: --num_classes=1000"
            raise UserError(f"{error}\n{hint}") from None
    model = variants.from_config(config.model, num_classes)
    if num_classes is not None:
        model = replace(model, num_classes=num_classes)
    return config.model.variant, model


def summary(name, config):
    """The stages of the model of a `ViTConfig` or `ResNetConfig` as a table, with its FLOPs."""
    from vit_jax.analysis import stages
    from vit_jax.figures.diagrams import stage_title

    rows, total = stages.from_config(config)
    rows = [(stage_title(stage), *rest) for stage, *rest in rows]
    rows += [("total", "", total)]
    wide = max(len(stage) for stage, _, _ in rows) + 2
    if isinstance(config, variants.ResNetConfig):
        sizes = f"stages of {', '.join(map(str, config.layers))} {config.block} blocks"
    else:
        sizes = f"depth {config.depth}, {config.num_heads} heads"
    lines = [f"{'stage':{wide}}{'shape per image':20}{'parameters':>14}"]
    for stage, shape, count in rows:
        lines.append(f"{stage:{wide}}{shape:20}{f'{count:,}' if count else '':>14}".rstrip())
    flops = count_flops(config)
    lines.append(
        f"\n{flops / 1e9:.4g} GFLOPs per image forward ({flops / 2e9:.4g} GMACs: one multiply-add "
        "is 2 FLOPs); a training step takes 3 times as many\n"
        f"{4 * total / 1e6:,.4g} MB of weights in float32; AdamW's state takes twice that"
    )
    return "\n".join([f"{name}: width {config.width}, {sizes}", "", *lines])


def draw(folder, name, model, config=None):
    """Draw a model as SVG files in a directory, which is created.

    Args:
      folder: where to write.
      name: of the model.
      model: its `ViTConfig` or `ResNetConfig`.
      config: of a run, whose objective is drawn too.

    Returns:
      The paths of the files.

    Raises:
      UserError: if they cannot be written.
    """
    from vit_jax import models, objectives
    from vit_jax.analysis import stages, weight_stats
    from vit_jax.figures import diagrams, sizes

    folder = Path(folder).expanduser()
    drawn = {"whole": diagrams.whole(stages.from_config(model)[0], name)}
    if isinstance(model, variants.ViTConfig):
        parts = ("self_attention", "multi_head", "patch_embedding", "positions")
        drawn |= {part: getattr(diagrams, part)(model) for part in parts}
    if config is not None:
        objective = objectives.make(models.build(model), config, steps_per_epoch=1)
        if part := objective.drawing:
            drawn[part] = getattr(diagrams, part)(model, config)
    bars = sizes.bars(weight_stats.beside_published(name.partition(",")[0], model))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, text in drawn.items():
            (folder / f"{part}.svg").write_text(text, encoding="utf-8")
        bars.savefig(folder / "sizes.svg")
    except OSError as error:
        raise UserError(f"--drawings={folder} cannot be written: {error.strerror}") from None
    return [folder / f"{part}.svg" for part in (*drawn, "sizes")]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
