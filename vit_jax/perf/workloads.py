"""Workloads of the benchmark: configs without augmentation, random batches, and steps.

A workload is a function `step() -> (arrays, scalar)` that runs on one device. JAX is imported
inside the functions, because the number of cores must be set first.
"""

import os

import vit_jax.config
from vit_jax import flops, variants
from vit_jax.devices import memory
from vit_jax.errors import UserError
from vit_jax.schema import pair, size_of

STEPS_PER_EPOCH = 1000  # converts durations in epochs to steps; does not affect the cost of a step


def make_config(name=None, batch_size=None, dtype=None, recipe=None):
    """Create a config to time, with synthetic images and without random color augmentation.

    Args:
      name: model name with overrides, such as "S/16,depth=4"; with a recipe, overrides may also be
        keys of its objective, such as "S/16,out_dim=4096". None: the model of the recipe.
      batch_size: images per step; None: that of the recipe.
      dtype: dtype of activations; None: that of the recipe.
      recipe: the config to start from, such as that of configs/dino.py; None: the defaults.

    Returns:
      The config, and the `ViTConfig` or `ResNetConfig` of its model.

    Raises:
      UserError: if the name or an option is unknown.
    """
    config = recipe or vit_jax.config.defaults()
    config.data.name = "synthetic"
    config.data.train = "train"
    if name:
        try:
            _set_model(config, name, objective_keys=recipe is not None)
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
        model = variants.from_config(config.model)
        sizes = zip(model.size, model.patch_size, strict=True)
        a.local_size = size_of(*(max(round(x * 3 / 7 / p), 1) * p for x, p in sizes))  # 96 of 224
    if config.optim.freeze_for != "0":
        config.optim.freeze_for = "1"  # one step: time the steps in which all layers are trained
    channels = config.model.channels
    if len(config.data.mean) != channels:
        config.data.mean = config.data.std = (0.5,) * channels
    vit_jax.config.check(config)
    return config, variants.from_config(config.model)


def _set_model(config, name, objective_keys):
    """Set the model from its name.

    Args:
      config: the config to change.
      name: model name with overrides.
      objective_keys: whether overrides may be keys of the objective.
    """
    base, options = variants.split_name(name)
    keys = config.objective.keys() & options.keys() if objective_keys else ()
    config.objective.update({key: options.pop(key) for key in keys})
    if unknown := options.keys() - config.model.keys():
        key = min(unknown)
        raise UserError(f"no option {key!r}; {vit_jax.config.suggest(key, config.model.keys())}")
    with config.model.ignore_type():  # `from_config` checks the types
        config.model.update({"variant": base, "image": variants.parse(base).image} | options)
    variants.from_config(config.model)


def input_config(name, batch_size, folder, threads, images=None):
    """Write a dataset of JPEG files and create the config of DeiT's input pipeline for it.

    Args:
      name: model name with overrides, which sets the image size.
      batch_size: images per batch.
      folder: the directory to write the images to.
      threads: threads of the input pipeline.
      images: directory of the images to read; None: `write_photographs`.

    Returns:
      The config, with random resized crops and RandAugment, and the `ViTConfig` or `ResNetConfig`
      of its model.
    """
    config, model = make_config(name, batch_size, "float32")
    if images:
        link_images(images, os.path.join(folder, "train", "images"))
    else:
        write_photographs(os.path.join(folder, "train"))
    config.data.name = "folder"
    config.data.dir = str(folder)
    config.augment.randaugment = "rand-m9-mstd0.5-inc1"
    # With one thread, read synchronously: prefetching between timed runs would not be measured.
    config.data.workers = 0
    config.data.threads = 0 if threads == 1 else threads
    return config, model


def link_images(source, folder, count=4096):
    """Fill a directory with symbolic links to the images of another one, repeated.

    Args:
      source: the directory of the images, with or without subdirectories.
      folder: the directory to create.
      count: number of links at least.

    Raises:
      UserError: if there are no images.
    """
    from vit_jax.data.decode import SUFFIXES

    paths = [
        os.path.abspath(os.path.join(parent, name))
        for parent, _, names in os.walk(os.path.expanduser(source))
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES)
    ]
    if not paths:
        raise UserError(f"--images={source} has no images; pass a directory of image files")
    os.makedirs(folder)
    for k in range(-(-count // len(paths))):
        for i, path in enumerate(paths):
            suffix = os.path.splitext(path)[1]
            os.symlink(path, os.path.join(folder, f"{i:06}_{k:04}{suffix}"))


def write_photographs(folder, count=128, names=32):
    """Write JPEG files of 500 x 375 or 375 x 500 pixels, in one subdirectory per class.

    The images are crops of the two sample photographs of scikit-learn at their original resolution.
    A quarter of them are rotated by 90 degrees, half of them are flipped, and brightness is scaled
    by 0.7 to 1.3. Quality 90, 4:2:0, 55 kB each. The hard links make the dataset large enough for
    shuffling to cost as much as it does for ImageNet.

    Args:
      folder: the directory to write to.
      count: number of distinct images.
      names: number of file names (hard links) per image.
    """
    import numpy as np
    from PIL import Image, ImageEnhance
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    sample = load_sample_images()
    for i in range(count):
        label = i % len(sample.images)
        class_name = os.path.basename(sample.filenames[label]).split(".")[0]
        class_folder = os.path.join(folder, class_name)
        os.makedirs(class_folder, exist_ok=True)
        photo = Image.fromarray(sample.images[label])
        if rng.random() < 0.25:
            photo = photo.transpose(Image.Transpose.ROTATE_90)
        w, h = (500, 375) if photo.width > photo.height else (375, 500)
        x, y = rng.integers(photo.width - w + 1), rng.integers(photo.height - h + 1)
        photo = photo.crop((x, y, x + w, y + h))
        if rng.random() < 0.5:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        photo = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.7, 1.3))
        path = os.path.join(class_folder, f"{i:03}.jpg")
        photo.save(path, quality=90)
        for k in range(1, names):
            os.link(path, os.path.join(class_folder, f"{i:03}_{k:02}.jpg"))


def batch_shapes(config):
    """Return the global batch of the training step as {name: jax.ShapeDtypeStruct}."""
    import jax
    import numpy as np

    from vit_jax import augment

    view, _ = augment.transforms(config)
    image = np.zeros((*pair(config.model.image), config.model.channels), np.uint8)
    views = view(image, np.random.default_rng(0))
    views = views if isinstance(views, dict) else {"image": views}
    rows = views | {"label": np.zeros((), np.int32)}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype)
        for name, x in rows.items()
    }


def random_batch(config):
    """Draw a random batch: images uint8 [b, ..., h, w, c], labels int32 [b].

    experiments/benchmarks/peer_*.py draw the same batch.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = batch_shapes(config)
    classes = variants.from_config(config.model).num_classes or config.data.synthetic.classes
    label = shapes.pop("label")
    batch = {name: rng.integers(0, 256, x.shape, np.uint8) for name, x in shapes.items()}
    return batch | {"label": rng.integers(0, classes, label.shape, np.int64).astype(np.int32)}


def make_objective(config, model):
    """Create the objective of a config and of the `ViTConfig` or `ResNetConfig` of its model."""
    from vit_jax import models, objectives

    return objectives.make(models.build(model), config, STEPS_PER_EPOCH)


def count_flops(what, config, model):
    """Return the FLOPs of a step per image as an int; 0 for the input pipeline."""
    if what == "input":
        return 0
    if what in ("forward", "attention"):
        return flops.count_flops(model)
    teacher = load_teacher(config)
    return make_objective(config, model).flops() + (teacher.flops if teacher else 0)


def load_teacher(config):
    """Load the frozen teacher of a config; None if it has none."""
    import jax

    from vit_jax import pretrained

    return pretrained.load_teacher(config, jax.default_backend())


def count_params(config, model):
    """Return the number of trainable parameters."""
    import jax

    params, _ = jax.eval_shape(make_objective(config, model).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def prepare(config, model):
    """Create the initial TrainState and the jitted train_step(state, batch, rng) of train.py."""
    import jax

    from vit_jax import optim, step

    objective = make_objective(config, model)
    tx, _ = optim.make(config, STEPS_PER_EPOCH)
    state = jax.jit(lambda rng: step.init_state(objective, tx, rng))(jax.random.key(0))
    return state, jax.jit(step.make_train_step(objective, tx), donate_argnums=0)


def build_train_step(config, model):
    """Return step() -> (state, loss), the training step of train.py."""
    import jax

    state, train_step = prepare(config, model)
    teacher = load_teacher(config)
    inputs = jax.random.key(0), *([teacher.constants] if teacher else [])
    batch, inputs = jax.device_put((random_batch(config), inputs))
    compiled = train_step.lower(state, batch, *inputs).compile()  # cached, as in `run.Run.step`
    memory.trim()
    exclusive = memory.exclusive(compiled, jax.default_backend())

    def advance():
        nonlocal state
        if exclusive:
            jax.block_until_ready(state.step)
        state, metrics = train_step(state, batch, *inputs)
        return state, metrics["loss"]

    return advance


def build_forward(config, model):
    """Return step() -> (logits, mean logit): normalize and classify a batch of images."""

    def classify(module, images):
        logits = module(images, tokens=False)["logits"]
        return logits, logits.mean()

    return _forward_step(classify, config, model)


def build_attention(config, model):
    """Return step() -> (arrays, scalar), the attention maps that `tools.attend` draws by default.

    Raises:
      UserError: if the model is a CNN.
    """
    from vit_jax.analysis import attention_maps

    if variants.is_cnn(config.model.variant):
        raise UserError("--what=attention: a ResNet has no attention; pass a ViT")
    layers = tuple(attention_maps.first_middle_last(model.depth))
    read = attention_maps.make_extractor(model.grid, model.prefix, model.has_class_token, layers)

    def read_maps(module, images):
        arrays = read(module, images)
        return arrays, arrays["tokens"][0, 0, 0]

    return _forward_step(read_maps, config, model)


def _forward_step(compute, config, model):
    """Return step() -> compute(module, images), with random weights and a random batch of images.

    Args:
      compute: a function of the bound module and normalized images [b, h, w, c].
      config: the config to time.
      model: the `ViTConfig` or `ResNetConfig` of its model.
    """
    import jax

    from vit_jax import augment, models

    images = jax.device_put(random_batch(config)["image"])
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
    """Return step() -> (batch, label), the input pipeline of train.py on the host."""
    from vit_jax import batch, data

    batches = batch.from_config(data.make(config, config.data.train), config)

    def advance():
        rows = next(batches)
        return rows, rows["label"][0]

    return advance


BUILDERS = {
    "train_step": build_train_step,
    "forward": build_forward,
    "attention": build_attention,
    "input": build_input,
}
