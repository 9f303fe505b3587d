"""Print the stages of a model with output shapes and parameters, and its FLOPs and memory.

python -m vit_jax.tools.summary --model=B/16
python -m vit_jax.tools.summary --config=configs/dino.py:s16_300
python -m vit_jax.tools.summary --table=markdown

No weights are allocated. --table prints the published sizes of ViT with their accuracy on ImageNet,
as text, Markdown or LaTeX (with booktabs). vit_jax.tools.drawings draws a model.
"""

import sys
from dataclasses import replace

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.flops import count_flops, count_params

DEFAULT_CLASSES = 1000  # those of ImageNet-1k


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_string(
        "model", None, "model name, with overrides: B/16 or vit_base_patch16_224,depth=4"
    )
    flags.DEFINE_integer(
        "num_classes", None, "number of classes (default: the dataset's; for --model: 1000)"
    )
    flags.DEFINE_enum(
        "table", None, ["text", "markdown", "latex"], "print the published sizes in this format"
    )


def main(flags):
    if flags.table:
        if flags.model or flags.config:
            raise UserError("--table has all sizes; leave out --model and --config")
        print(size_table(flags.table))
        return
    if (flags.model is None) == (flags.config is None):
        raise UserError("pass either --model=NAME or --config=FILE; see --help")
    name, config = resolve_model(flags.model, flags.config, flags.num_classes)
    print(summary(name, config))


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


def size_table(form):
    """Format the published sizes of ViT as a table.

    Args:
      form: "text", "markdown" or "latex".

    Returns:
      The table, a string: layers, width, heads, parameters, FLOPs per image, and the published
      top-1 accuracy on ImageNet with its source.
    """
    head = ["model", "layers", "width", "heads", "parameters", "GFLOPs", "ImageNet top-1", "source"]
    rows = []
    for name, (top1, source) in variants.PUBLISHED.items():
        config = variants.parse(name)
        sizes = (config.depth, f"{config.width:,}", config.num_heads)
        amounts = (f"{count_params(config) / 1e6:.1f} M", f"{count_flops(config) / 1e9:.1f}")
        rows.append([name, *map(str, sizes), *amounts, f"{top1:.1f}", source])
    if form == "markdown":
        lines = [head, ["---"] + ["---:"] * (len(head) - 2) + ["---"], *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if form == "latex":
        lines = [" & ".join(line) + r" \\" for line in [head, *rows]]
        columns = "l" + "r" * (len(head) - 2) + "l"
        body = [lines[0], r"\midrule", *lines[1:]]
        start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        return "\n".join([*start, *body, r"\bottomrule", r"\end{tabular}"])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in (0, len(head) - 1) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, *rows]
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
