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
    classes = flags.num_classes
    if flags.config is None:
        name = flags.model
        config = variants.parse(name, num_classes=classes)
    else:
        name = flags.config.model.variant
        if classes is None and flags.config.model.num_classes is None:
            classes = count_classes(flags.config)
        config = variants.of_config(flags.config.model, classes)
    if classes is not None:
        config = replace(config, num_classes=classes)
    print(describe(name, config))
    if flags.drawings:
        draw(flags.drawings, name, config, flags.config)


def count_classes(config):
    """The classes of the data of a config. Raises UserError where the data are not here."""
    from vit_jax import data

    try:
        return data.make(config, config.data.train).num_classes
    except UserError as error:
        raise UserError(f"{error}\nOr pass the number of classes: --num_classes=1000") from None


def describe(name, config):
    """A table of the stages, as text."""
    from vit_jax.analysis import stages

    rows, total = stages.of_config(config)
    wide = max(len(stage) for stage, _, _ in rows) + 2
    lines = [f"{name}: width {config.width}, ", ""]
    if isinstance(config, variants.ResNetConfig):
        lines[0] += f"stages of {', '.join(map(str, config.layers))} {config.block} blocks"
    else:
        lines[0] += f"depth {config.depth}, {config.num_heads} heads"
    lines += [f"{'stage':{wide}}{'shape of an image':20}{'parameters':>14}"]
    for stage, shape, count in rows:
        lines.append(f"{stage:{wide}}{shape:20}{f'{count:,}' if count else '':>14}".rstrip())
    flops = count_flops(config)
    lines += [f"{'total':{wide}}{'':20}{total:>14,}", ""]
    words = f"{flops / 1e9:.4g} GFLOPs per image forward ({flops / 2e9:.4g} GMACs: one multiply-add"
    lines += [words + " is 2 FLOPs); a training step takes 3 times as many"]
    lines += [f"{4 * total / 1e6:,.4g} MB of weights in float32; AdamW's state is twice that again"]
    return "\n".join(lines)


def draw(folder, name, model, config=None):
    """Write the drawings into a directory, created if missing, and print them. Raises UserError."""
    from vit_jax.analysis import stages, weight_stats
    from vit_jax.figures import diagrams, sizes

    folder = Path(folder).expanduser()
    drawn = {"whole": diagrams.whole(stages.of_config(model)[0], name)}
    if isinstance(model, variants.ViTConfig):
        parts = ("self_attention", "multi_head", "patch_embedding", "positions")
        drawn |= {part: getattr(diagrams, part)(model) for part in parts}
    if config is not None and config.objective.name == "dino":
        drawn["dino"] = diagrams.dino(model, config)
    bars = sizes.bars(weight_stats.beside_published(name.partition(",")[0], model))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, text in drawn.items():
            (folder / f"{part}.svg").write_text(text, encoding="utf-8")
        bars.savefig(folder / "sizes.svg")
    except OSError as error:
        raise UserError(f"--drawings={folder} cannot be written: {error.strerror}") from None
    print("\n".join(f"{folder}/{part}.svg" for part in (*drawn, "sizes")))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
