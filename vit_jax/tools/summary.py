"""The stages of a model with their shapes, parameters, FLOPs and memory. Allocates no weights.

python -m vit_jax.tools.summary --model=B/16
python -m vit_jax.tools.summary --config=configs/dino.py:s16_300 --drawings=figures

--drawings writes the stages, attention, its heads, patch embedding, positions, with a DINO config
also student and teacher, each as an SVG with this model's own shapes, and its size beside the
published ones.
"""

from pathlib import Path

from absl import flags

from vit_jax import cli, variants
from vit_jax.cli import UserError


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_string(
        "model", None, "a name, with overrides: B/16 or vit_base_patch16_224,depth=4"
    )
    flags.DEFINE_integer("num_classes", None, "classes (default: the data's; 1000 for --model)")
    flags.DEFINE_string("drawings", None, "folder to write SVG drawings of the model into")


def main(flags):
    if (flags.model is None) == (flags.config is None):
        raise UserError("say either --model=NAME or --config=FILE; see --help")
    try:
        if flags.config is None:
            name, options = flags.model, variants.parse(flags.model)
            options.setdefault("num_classes", 1000)
        else:
            name, options = flags.config.model.variant, variants.of_config(**flags.config.model)
            options["num_classes"] = 0
            if flags.num_classes is None:
                options["num_classes"] = count_classes(flags.config)
        if flags.num_classes is not None:
            options["num_classes"] = flags.num_classes
        print(describe(name, options))
        if flags.drawings:
            draw(flags.drawings, name, options, flags.config)
    except UserError:
        raise
    except ValueError as error:  # an option that the model does not have, or sizes that clash
        raise UserError(str(error)) from error


def count_classes(config):
    """The classes of the data of a config. Raises UserError where the data are not here."""
    from vit_jax import data

    try:
        return data.make(config, config.data.train).num_classes
    except UserError as error:
        raise UserError(f"{error}\nOr say how many classes there are: --num_classes=1000") from None


def measure(name, options):
    """-> rows as of `stages`, their sum. options: as `variants.parse` has them, and num_classes."""
    import jax

    from vit_jax import models

    options = dict(options)
    num_classes = options.pop("num_classes")
    cnn = "layers" in options
    variant = name.split(",")[0] if cnn else f"mu/{options['patch']}"
    model = models.build(num_classes, variant=variant, **options)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = (cnn_stages if cnn else stages)(model, params, options)
    total = sum(x.size for x in jax.tree.leaves(params))
    stray = total - sum(count for _, _, count in rows if count)
    if stray:
        raise AssertionError(f"{stray:,} parameters belong to no stage")
    return rows, total


def describe(name, options):
    """A table of the stages, as text; options as for `measure`."""
    rows, total = measure(name, options)
    wide = max(len(stage) for stage, _, _ in rows) + 2
    lines = [f"{name}: width {options['width']}, ", ""]
    if "layers" in options:
        lines[0] += f"stages of {', '.join(map(str, options['layers']))} {options['block']} blocks"
    else:
        lines[0] += f"depth {options['depth']}, {options['num_heads']} heads"
    lines += [f"{'stage':{wide}}{'shape of an image':20}{'parameters':>14}"]
    for stage, shape, count in rows:
        lines.append(f"{stage:{wide}}{shape:20}{f'{count:,}' if count else '':>14}".rstrip())
    flops = variants.count_flops(**options)
    lines += [f"{'total':{wide}}{'':20}{total:>14,}", ""]
    words = f"{flops / 1e9:.4g} GFLOPs an image forward ({flops / 2e9:.4g} GMACs: one multiply-add"
    lines += [words + " is 2 FLOPs); a training step takes 3 times as many"]
    lines += [f"{4 * total / 1e6:,.4g} MB of weights in float32; AdamW's state is twice that again"]
    return "\n".join(lines)


def draw(folder, name, options, config=None):
    """Writes the drawings into a folder, which is made; says which. Raises UserError."""
    from vit_jax import anatomy
    from vit_jax.figures import diagrams, sizes

    folder = Path(folder).expanduser()
    drawn = {"whole": diagrams.whole(measure(name, options)[0], name)}
    if "layers" not in options:
        parts = ("self_attention", "multi_head", "patch_embedding", "positions")
        drawn |= {part: getattr(diagrams, part)(options) for part in parts}
    if config is not None and config.objective.name == "dino":
        drawn["dino"] = diagrams.dino(options, config)
    bars = sizes.bars(anatomy.beside_published(name.partition(",")[0], options))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, text in drawn.items():
            (folder / f"{part}.svg").write_text(text, encoding="utf-8")
        bars.savefig(folder / "sizes.svg")
    except OSError as error:
        raise UserError(f"--drawings={folder} cannot be written: {error.strerror}") from None
    print("\n".join(f"{folder}/{part}.svg" for part in (*drawn, "sizes")))


def one_image(options):
    import jax

    side = options["image"]
    return jax.ShapeDtypeStruct((1, side, side, options.get("channels", 3)), "float32")


def cnn_stages(model, params, options):
    """As `stages`, of a ResNet."""
    import jax

    from vit_jax import models

    images = one_image(options)
    out = jax.eval_shape(
        lambda p, x: model.apply(models.union(p, model.stats()), x, blocks=True), params, images
    )
    names = {"stem": "stem, convolution", "pool": "stem, max pooling"}
    names |= {f"layer{i + 1}": f"{n} blocks" for i, n in enumerate(options["layers"])}
    rows = [("image", images, "")]
    rows += [(names[stage], out["maps"][stage], stage) for stage in names if stage in out["maps"]]
    rows += [("mean over the image", out["pooled"], "")]
    rows += [("head", out["logits"], "head")] if "logits" in out else []
    return [(name, shape(x.shape[1:]), size(params, stage)) for name, x, stage in rows]


def size(params, *path):
    """Parameters below a path; 0 where there is nothing."""
    import jax

    for key in path:
        params = params.get(key, {})
    return sum(x.size for x in jax.tree.leaves(params))


def shape(x):
    return f"[{'x'.join(map(str, x))}]"


def stages(model, params, options):
    """[(stage, shape for one image, parameters)], from the outside in."""
    import jax

    images = one_image(options)
    named = {"attention": True, "blocks": True}
    out = jax.eval_shape(lambda p, x: model.apply(p, x, **named), params, images)
    patches = jax.eval_shape(lambda p, x: model.bind(p).patch_embed(x), params, images)
    patch, (_, n, d) = options["patch"], out["tokens"].shape
    depth, _, heads, _, _ = out["attention"].shape

    how = {"conv": "convolution", "linear": "unfold and linear"}
    how = how[options.get("patch_embed", "conv")]
    rows = [("image", shape(images.shape[1:]), 0)]
    count = patches.shape[1]
    rows += [
        (
            f"{count} patches of {patch}x{patch} ({how})",
            shape(patches.shape[1:]),
            size(params, "patch_embed"),
        )
    ]
    position = {"learned": "position, learned", "sincos2d": "position, fixed 2-D sin-cos"}
    position = position[options.get("pos_embed", "learned")]
    extra = "[CLS] + " if "cls_token" in params else ""
    count = size(params, "cls_token") + size(params, "pos_embed")
    rows += [(extra + position, shape((n, d)), count)]
    rows += [(f"{depth} encoder blocks of", shape(out["blocks"].shape[2:]), 0)]
    rows += [(f"  {stage}", *rest) for stage, *rest in block(params, options, n, heads)]
    pools = {"cls": "CLS", "gap": "mean of the patches", "map": "attention pooling (MAP)"}
    pool = pools[options.get("pool", "cls")]
    if "norm" in params:
        rows += [("LayerNorm", shape((n, d)), size(params, "norm"))]
    rows += [(pool, shape(out["pooled"].shape[1:]), size(params, "attn_pool"))]
    if "fc_norm" in params:
        rows += [("LayerNorm", shape((d,)), size(params, "fc_norm"))]
    if "logits" in out:
        rows += [("head", shape(out["logits"].shape[1:]), size(params, "head"))]
    return rows


def block(params, options, n, heads):
    """The stages of the encoder blocks; parameters are those of all blocks together."""
    d, m = options["width"], options["mlp_dim"]
    tokens = shape((n, d))
    norms = [("LayerNorm", tokens, size(params, "blocks", f"norm{i}")) for i in (1, 2)]
    attention = [
        (
            f"{heads} heads of {d // heads}: attention",
            shape((heads, n, n)),
            size(params, "blocks", "attn", "qkv"),
        ),
        ("heads joined, linear", tokens, size(params, "blocks", "attn", "proj")),
    ]
    mlp = [(f"MLP {d} -> {m} -> {d}", tokens, size(params, "blocks", "mlp"))]
    add = [("+ what came in", tokens, 0)]
    if options.get("norm", "pre") == "post":
        return attention + add + norms[:1] + mlp + add + norms[1:]
    return norms[:1] + attention + add + norms[1:] + mlp + add


if __name__ == "__main__":
    define_flags()
    cli.run(main)
