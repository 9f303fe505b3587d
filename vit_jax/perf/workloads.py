"""What the benchmark times: configs without augmentation, random batches, steps.

A workload is `step() -> (arrays, scalar)` on one device. JAX is imported where it is needed: the
number of cores must be set before.
"""

import os

import vit_jax.config
from vit_jax import flops, variants
from vit_jax.errors import UserError

STEPS_PER_EPOCH = 1000  # durations in epochs are counted with it; nothing else depends on it


def make_config(name=None, batch_size=None, dtype=None, recipe=None):
    """A config to time: no random colors, synthetic images.

    Args:
      name: of the model, with overrides; with a recipe also of keys of its objective, such as
        "S/16,out_dim=4096"; None: the recipe's model.
      batch_size: images per step; None: the recipe's.
      dtype: of activations; None: the recipe's.
      recipe: the config to begin with, such as that of configs/dino.py; None: the defaults.

    Returns:
      The config, and the `ViTConfig` or `ResNetConfig` of its model.

    Raises:
      UserError: for an unknown name or option.
    """
    config = recipe or vit_jax.config.defaults()
    config.data.name = "synthetic"
    config.data.train = "train"
    if name:
        try:
            _set_model(config, name, own_keys=recipe is not None)
        except UserError as error:
            raise UserError(f"--model: {error}") from None
    config.model.dtype = dtype or config.model.dtype
    config.batch_size = batch_size or config.batch_size
    config.data.synthetic.images = max(512, config.batch_size)
    config.optim.lr = 1e-4
    config.optim.lr_batch = 0
    config.optim.warmup = "0"
    config.total_steps = "1000k"
    a = config.augment
    a.flip = a.jitter_prob = a.gray = 0.0
    a.blur = a.solarize = (0.0,) * 3
    if a.crop == "multi":
        patch = variants.from_config(config.model).patch
        a.local_size = max(round(config.model.image * 3 / 7 / patch), 1) * patch  # 96 of 224
    if config.optim.freeze_for != "0":
        config.optim.freeze_for = "1"  # epochs after the first are timed, in which all layers train
    channels = config.model.channels
    if len(config.data.mean) != channels:
        config.data.mean = config.data.std = (0.5,) * channels
    vit_jax.config.check(config)
    return config, variants.from_config(config.model)


def _set_model(config, name, own_keys):
    """Set the model by its name, and with own_keys the keys of the objective among its options."""
    base, options = variants.split_name(name)
    own = config.objective.keys() & options.keys() if own_keys else ()
    config.objective.update({key: options.pop(key) for key in own})
    if unknown := options.keys() - config.model.keys():
        key = min(unknown)
        raise UserError(f"no option {key!r}; {vit_jax.config.suggest(key, config.model.keys())}")
    with config.model.ignore_type():  # `from_config` checks them
        config.model.update({"variant": base, "image": variants.parse(base).image} | options)
    variants.from_config(config.model)


def input_config(name, batch_size, folder, threads):
    """-> a config with DeiT's crops and RandAugment, at the model's image size, whose photographs
    are written to `folder`, and the config of its model."""
    config, model = make_config(name, batch_size, "float32")
    write_photographs(os.path.join(folder, "train"))
    config.data.name = "folder"
    config.data.dir = str(folder)
    config.augment.randaugment = "rand-m9-mstd0.5-inc1"
    # With one thread, read in this one: reading ahead would not count in a turn's time.
    config.data.threads = 0 if threads == 1 else threads
    return config, model


def write_photographs(folder, count=128, names=32):
    """`count` JPEGs of 500 x 375 or 375 x 500 pixels, each under `names` names (hard links).

    Parts of scikit-learn's two photographs at their own resolution, a quarter of them turned by
    90 degrees, half of them mirrored, brightness times 0.7 to 1.3; quality 90, 4:2:0, 55 kB each.
    The many names make a data set large enough for its shuffling to cost what it does in ImageNet.
    """
    import numpy as np
    from PIL import Image, ImageEnhance
    from sklearn.datasets import load_sample_images

    rng, sample = np.random.default_rng(0), load_sample_images()
    for i in range(count):
        label = i % len(sample.images)
        place = os.path.join(folder, os.path.basename(sample.filenames[label]).split(".")[0])
        os.makedirs(place, exist_ok=True)
        photo = Image.fromarray(sample.images[label])
        if rng.random() < 0.25:
            photo = photo.transpose(Image.Transpose.ROTATE_90)
        w, h = (500, 375) if photo.width > photo.height else (375, 500)
        x, y = rng.integers(photo.width - w + 1), rng.integers(photo.height - h + 1)
        photo = photo.crop((x, y, x + w, y + h))
        if rng.random() < 0.5:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        photo = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.7, 1.3))
        path = os.path.join(place, f"{i:03}.jpg")
        photo.save(path, quality=90)
        for k in range(1, names):
            os.link(path, os.path.join(place, f"{i:03}_{k:02}.jpg"))


def batch_shapes(config):
    """A global batch as the training step gets it, in shapes and dtypes."""
    import jax
    import numpy as np

    from vit_jax import augment

    view, _ = augment.transforms(config)
    image = np.zeros((config.model.image, config.model.image, config.model.channels), np.uint8)
    views = view(image, np.random.default_rng(0))
    views = views if isinstance(views, dict) else {"image": views}
    rows = views | {"label": np.zeros((), np.int32)}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype)
        for name, x in rows.items()
    }


def one_batch(config):
    """A random batch: views uint8 [b, ..., h, w, c], labels int32 [b]; peer_*.py draw the same."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = batch_shapes(config)
    classes = variants.from_config(config.model).num_classes or config.data.synthetic.classes
    label = shapes.pop("label")
    batch = {name: rng.integers(0, 256, x.shape, np.uint8) for name, x in shapes.items()}
    return batch | {"label": rng.integers(0, classes, label.shape, np.int64).astype(np.int32)}


def make_objective(config, model):
    """The objective of a config and of the `ViTConfig` or `ResNetConfig` of its model."""
    from vit_jax import models, objectives

    return objectives.make(models.build(model), config, STEPS_PER_EPOCH)


def count_flops(what, config, model):
    """FLOPs of a step per image; 0 for the input pipeline. -> int"""
    if what == "input":
        return 0
    if what in ("forward", "attention"):
        return flops.count_flops(model)
    return make_objective(config, model).flops()


def count_params(config, model):
    """Trainable parameters. -> int"""
    import jax

    params, _ = jax.eval_shape(make_objective(config, model).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def prepare(config, model):
    """-> TrainState, train_step(state, batch, rng), jitted: as train.py has them."""
    import jax

    from vit_jax import optim, step

    objective = make_objective(config, model)
    tx, _ = optim.make(config, STEPS_PER_EPOCH)
    state = jax.jit(lambda rng: step.init_state(objective, tx, rng))(jax.random.key(0))
    return state, jax.jit(step.make_train_step(objective, tx), donate_argnums=0)


def build_train_step(config, model):
    """-> step() -> (state, loss): what train.py does in a step."""
    import jax

    state, train_step = prepare(config, model)
    rng, batch = jax.random.key(0), jax.device_put(one_batch(config))

    def advance():
        nonlocal state
        state, metrics = train_step(state, batch, rng)
        return state, metrics["loss"]

    return advance


def build_forward(config, model):
    """-> step() -> (logits, their mean): normalize and classify."""

    def classify(module, images):
        logits = module(images)["logits"]
        return logits, logits.mean()

    return _on_a_batch(classify, config, model)


def build_attention(config, model):
    """-> step() -> (maps and features, one of them): what `tools.attend` draws by default."""
    from vit_jax.analysis import attention_maps

    if variants.is_cnn(config.model.variant):
        raise UserError("--what=attention: a ResNet has none; name a ViT")
    layers = tuple(attention_maps.first_middle_last(model.depth))
    read = attention_maps.reader(model.grid, model.prefix, layers)

    def look(module, images):
        found = read(module, images)
        return found, found["tokens"][0, 0, 0]

    return _on_a_batch(look, config, model)


def _on_a_batch(compute, config, model):
    """-> step() -> compute(module, images): random weights, a random batch that is normalized."""
    import jax

    from vit_jax import augment, models

    images = jax.device_put(one_batch(config)["image"])
    model = models.build(model)
    params = jax.jit(lambda rng: models.merge_trees(model.init(rng), model.stats()))(
        jax.random.key(0)
    )

    @jax.jit
    def run(params, images):
        images = augment.normalize(images, config.data.mean, config.data.std)
        return compute(model.bind(params), images)

    return lambda: run(params, images)


def build_input(config, _):
    """-> step() -> (batch, a label): batches as train.py reads them, on the host alone."""
    from vit_jax import batch, data

    batches = batch.from_config(data.make(config, config.data.train), config)

    def advance():
        rows = next(batches)
        return rows, rows["label"][0]

    return advance


BUILD = {
    "train_step": build_train_step,
    "forward": build_forward,
    "attention": build_attention,
    "input": build_input,
}
