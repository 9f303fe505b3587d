"""What a run's model looks at, beside another's: attention of its last layer, features as colours.

python -m vit_jax.tools.attend --workdir=runs/dino --against=runs/supervised \\
    --output=attention.png test:0 test:1 cat.jpg

Writes the figure, and the arrays in it beside it as .npz.
"""

from types import SimpleNamespace

from absl import flags

from vit_jax import cli
from vit_jax.cli import UserError
from vit_jax.tools import features, predict

MOST, MOST_HEADS = 16, 6  # images, a row each; heads, a column each


def define_flags():
    flags.DEFINE_string(
        "workdir", None, "folder of a run; test:0 is a row of its data", required=True
    )
    flags.DEFINE_string("against", None, "folder of another run, on the same images")
    flags.DEFINE_string("output", None, "picture to write: .png, .pdf or .svg", required=True)
    flags.DEFINE_list("heads", None, "which to draw beside their mean; none said: the first three")
    flags.DEFINE_string("checkpoint", "best", "of both runs: best, latest or a step")
    flags.DEFINE_bool("raw", False, "the trained weights, not their average or the teacher's")


def main(flags, words):
    if not 0 < len(words) <= MOST:
        raise UserError(f"name 1 to {MOST} images: files, or test:0, a row of the run's data")
    output = cli.figure_path("output", flags.output)
    folders = [folder for folder in (flags.workdir, flags.against) if folder]
    for folder in folders:
        cli.load_config(folder)  # before the wait for jax
    models = [load(folder, flags.checkpoint, flags.raw) for folder in folders]
    heads = pick_heads(flags.heads, models)
    pictures, broken = predict.open_images(words, models[0])
    if not pictures:
        return 2
    names, views = [p.name for p in pictures], [[p.view for p in pictures]]
    for model in models[1:]:  # rows of the first run's data, prepared for this model
        model.config = models[0].config
        views.append([p.view for p in predict.open_images(names, model)[0]])
    seen = [see(*pair) for pair in zip(models, views, strict=True)]
    write(output, names, views[0], seen, heads)
    return 2 if broken else 0


def pick_heads(words, models):
    """["0", "2"] -> (0, 2), heads that every model has. Raises UserError."""
    if words is None:
        return (0, 1, 2)
    fewest = min(model.module.blocks.attn.num_heads for model in models)
    try:
        heads = tuple(int(word) for word in words)
    except ValueError:
        heads = (-1,)
    if len(heads) > MOST_HEADS or any(not 0 <= head < fewest for head in heads):
        raise UserError(
            f"--heads={','.join(words)} must be at most {MOST_HEADS} numbers from 0 to {fewest - 1}"
        )
    return heads


def load(workdir, checkpoint, raw):
    """A run's model, called, and how its images are prepared: what `predict.open_images` needs."""
    from vit_jax import checkpoint as checkpoints

    config, _, model, params, step = checkpoints.load_weights(workdir, checkpoint, raw)
    return SimpleNamespace(
        module=model.bind(params),
        config=config,
        image=config.model.image,
        channels=config.model.channels,
        mean=config.data.mean,
        std=config.data.std,
        crop=config.augment.eval_crop,
        name=f"{workdir}, step {step:,}",
    )


def see(model, views):
    """uint8 images [h, w, c] -> one of the `models` of `figures.seeing`."""
    import jax
    import numpy as np

    from vit_jax import attention, augment, vit

    module = model.module
    apply, params = vit.functional(module)
    side, prefix = model.image // module.patch, module.prefix
    read = attention.cls_maps if prefix else attention.patch_maps

    @jax.jit
    def last_layer(params, image):
        images = augment.normalise(image[None], model.mean, model.std)
        out = apply(params, images, attention=True)
        return read(out["attention"][-1:], (side, side), prefix)[0, 0], out["tokens"][0, prefix:]

    # One image at a time: the maps of all layers are large.
    maps, tokens = zip(*(jax.device_get(last_layer(params, x)) for x in views), strict=True)
    tokens = np.stack(tokens).astype(np.float32)
    who = "[CLS]" if prefix else "the average patch (no [CLS])"
    depth, even = len(params["blocks"]["norm1"]["scale"]), 1 / (side * side + prefix)
    notes = [f"attention of {who}, layer {depth} of {depth}"]
    square = "{0}x{0}".format
    notes += [f"image {square(model.image)}, {square(side)} patches of {square(module.patch)}"]
    notes[-1] += f"; an even share is {even:.1%}"
    return {
        "name": model.name,
        "note": "\n".join(notes),
        "maps": np.stack(maps).astype(np.float32),
        "colours": attention.pca(tokens).reshape(len(views), side, side, 3),
    }


def write(output, names, views, seen, heads):
    """The figure, and an .npz with the same name; says what was written."""
    import numpy as np

    from vit_jax import attention
    from vit_jax.figures.seeing import KEEP, seeing

    figure = seeing(views, seen, titles=names, heads=heads)
    arrays = {"names": np.array(names), "images": np.stack(views)}
    for role, model in zip(("workdir", "against"), seen, strict=False):
        mask = attention.mass_mask(model["maps"].mean(1), KEEP)
        found = {"maps": model["maps"], "mask": mask, "colours": model["colours"]}
        arrays |= {f"{role}_{name}": array for name, array in found.items()}
        arrays[f"{role}_name"] = np.array(f"{model['name']}: {model['note']}")
    figure.savefig(output, dpi=150)
    features.write(output.with_suffix(".npz"), arrays)
    print(f"{output}\n{output.with_suffix('.npz')}")


if __name__ == "__main__":
    define_flags()
    cli.run(main, args="IMAGE...")
