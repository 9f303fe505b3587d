"""The ten drawings of a model: its parts with its own shapes, and one image on its way through."""

from datetime import UTC, datetime
from functools import partial

import jax
import numpy as np

from vit_jax import progress, variants
from vit_jax.analysis import (
    attention,
    attention_maps,
    gradcam,
    receptive_field,
    stages,
    weight_stats,
)
from vit_jax.augment.host import to_channels
from vit_jax.config import defaults, objective
from vit_jax.data import class_names
from vit_jax.figures import diagrams, sizes, walkthrough
from vit_jax.figures.catalog import LANGUAGES
from vit_jax.flops import count_params
from vit_jax.report import page, run_sections
from vit_jax.report.words import Phrases
from vit_jax.schema import pair

TOP_K = 5
# The drawings of a CNN keep the numbers of a ViT's.
NUMBERS = dict(model=1, self_attention=2, heads=3, patches=4, positions=5, dino=6, vit_and_cnn=7)
NUMBERS |= dict(shades=8, gradcam=8, sizes=9, way=10)
LOCAL_SCALE = 96 / 224  # side of DINO's local crops relative to the global ones
SMALL_IMAGE = 64  # pixels; below, the other network is one for small images
RESNETS = {
    True: ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    False: ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
}  # {whether the image is small: names}
VITS = {True: ("pico", "nano", "micro", "Ti", "S"), False: ("Ti", "S", "B", "L", "H")}


def compose(model, picture, *, langs=LANGUAGES, random=False):
    """Draw a model and one image.

    Args:
      model: an `inference.LoadedModel`.
      picture: a `data.pictures.Picture`.
      langs: languages of the page.
      random: whether the weights are random, which the page says.

    Returns:
      The self-contained page, a string; and {file name: draw(phrases), which returns SVG text or a
      matplotlib Figure}.

    Raises:
      UserError: if the image does not fit the model.
    """
    phrases = Phrases(langs)
    with progress.steps("drawings", total=2) as start_step:
        start_step("running the model")
        view = picture.view(model)
        shown = to_channels(view, min(view.shape[2], 3))
        drawn = _cnn(model, view, shown) if model.is_cnn else _vit(model, view, shown)
        start_step("drawing")
        sections, files = [], {}
        for name, draws in drawn.items():
            blocks = []
            for k, draw in enumerate(draws):
                caption = phrases(_caption(name, model)) if k + 1 == len(draws) else None
                blocks.append(page.figure(phrases, f"{name}-{k}", draw, caption))
                files[f"{NUMBERS[name]:02}_{name}" + (f"_{k + 1}" if k else "")] = draw
            sections.append(page.section(f"drawn_{name}", *blocks))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = phrases("of_picture", name=model.variant, picture=picture.name, made=made)
    if random:
        subtitle += phrases("untrained")
    facts = run_sections.facts(phrases, model)
    html = page.render(phrases, model.short_name, subtitle, facts, sections, foot="foot_drawings")
    return html, files


def _caption(name, model):
    """Return the phrase below a drawing."""
    without_classes = name == "way" and not model.module.config.num_classes
    return "caption_way_features" if without_classes else f"caption_{name}"


def _vit(model, view, shown):
    """Return {name: list of draw(phrases)} of a ViT."""
    config = model.module.config
    layers = attention_maps.first_middle_last(model.depth)
    extracted = attention_maps.extract(model, [view], layers)
    maps = extracted.maps[0]
    drawn = {
        "model": [partial(diagrams.whole, stages.from_config(config)[0], model.variant)],
        "self_attention": [partial(diagrams.self_attention, config)],
        "heads": [
            partial(diagrams.multi_head, config),
            partial(walkthrough.head_maps, model.prefix, shown, maps[-1]),
        ],
        "patches": [
            partial(walkthrough.patches, config, shown),
            partial(diagrams.patch_embedding, config),
        ],
    }
    if config.pos_embed != "none":
        similarity = weight_stats.position_similarity(weight_stats.positions(model.module))
        drawn["positions"] = [
            partial(diagrams.positions, config),
            partial(walkthrough.position_maps, similarity),
        ]
    drawn["dino"] = [partial(diagrams.dino, config, _dino_config(model))]
    drawn["vit_and_cnn"] = [_networks(config)]
    drawn["shades"] = [_shades(config, shown, maps.mean(1), layers, model.depth)]
    drawn["sizes"] = [_sizes(model)]
    out = model.run([view])
    tokens = out["tokens"].shape[1:]
    drawn["way"] = [_way(model, shown, out, ("way_tokens", tokens), ("way_blocks", tokens))]
    return drawn


def _cnn(model, view, shown):
    """Return {name: list of draw(phrases)} of a CNN: what it shares with a ViT."""
    config = model.module.config
    rows = stages.from_config(config)[0]
    drawn = {"model": [partial(diagrams.whole, rows, model.variant)]}
    drawn["vit_and_cnn"] = [_networks(config)]
    out = model.run([view])
    if "logits" in out:
        maps = model.run([view], compute=_grad_cam)
        maps = [maps[stage][0] for stage in model.module.stages if stage in maps]
        layers = attention_maps.first_middle_last(len(maps))
        maps = [maps[layer - 1] for layer in layers]
        drawn["gradcam"] = [_shades(config, shown, maps, layers, model.depth)]
    drawn["sizes"] = [_sizes(model)]
    plan = variants.convolutions(config)
    first, last = (
        (*size, channels) for *_, channels, size in (plan["stem"], list(plan.values())[-1])
    )
    drawn["way"] = [_way(model, shown, out, ("cnn_stem", first), ("way_stages", last))]
    return drawn


def _grad_cam(module, images):
    """Compute Grad-CAM of the predicted class [b, rows, columns] by stage."""
    predicted = module(images)["logits"].argmax(-1)
    return gradcam.resnet_grad_cam(module, images, predicted)


def _dino_config(model):
    """Return the config of a DINO run, or DINO's defaults for another model."""
    if model.config is not None and model.config.objective.name == "dino":
        return model.config
    config = defaults()
    with config.unlocked():
        config.objective = objective("dino")
    config.model.channels = model.channels
    patches = [max(1, round(side * LOCAL_SCALE)) for side in model.grid]
    size = tuple(n * side for n, side in zip(patches, pair(model.patch), strict=True))
    config.augment.local_size = size if size[0] != size[1] else size[0]
    return config


def _shades(config, shown, maps, layers, depth):
    def draw(*, phrases):
        key = "stage_of" if isinstance(config, variants.ResNetConfig) else "layer_of"
        titles = [phrases(key, layer=layer, depth=depth) for layer in layers]
        prefix = getattr(config, "prefix", None)
        return walkthrough.shades(prefix, shown, titles, maps, attention.SHADES, phrases=phrases)

    return draw


def _sizes(model):
    scores = run_sections.final_scores(model)
    tested = [(key, 100 * row[key]) for split, key, row in scores if split == "test"]
    metric, top1 = tested[0] if tested else ("", None)
    config = model.module.config
    dataset = run_sections.dataset(model)
    if "knn" in metric:
        dataset += " (k-NN)"
    rows = weight_stats.compare_with_published(model.variant, config, top1, dataset)
    return partial(sizes.bars, rows)


def _way(model, shown, out, *steps):
    """Return draw(phrases) of the way to the top classes; to the features without a classifier.

    Args:
      model: an `inference.LoadedModel`.
      shown: the view, uint8 [h, w, 1 or 3].
      out: outputs of the model for this view.
      *steps: (phrase, shape of the output) of the stages before the pooling.
    """
    top = []
    steps += (("way_pool", out["pooled"].shape[1:]),)
    if "logits" in out:
        probabilities = np.asarray(jax.nn.softmax(out["logits"][0]))
        names = class_names.readable(model.class_names)
        best = (-probabilities).argsort(kind="stable")[:TOP_K]
        top = [(names[k], float(probabilities[k])) for k in best]
        steps += (("way_logits", probabilities.shape), ("softmax_over", probabilities.shape))

    def draw(*, phrases):
        translated = class_names.translate([name for name, _ in top], phrases.language)
        named = [(name, share) for name, (_, share) in zip(translated, top, strict=True)]
        titled = [(phrases(key, depth=model.depth), shape) for key, shape in steps]
        return walkthrough.prediction(shown, titled, named, phrases=phrases)

    return draw


def _networks(config):
    """Return draw(phrases) of a model beside the network of the other kind of nearest size."""
    small = min(config.size) < SMALL_IMAGE
    options = dict(image=config.image, channels=config.channels, num_classes=config.num_classes)
    is_cnn = isinstance(config, variants.ResNetConfig)
    if is_cnn:
        patch = next(p for p in ((4, 2, 1) if small else (16, 14, 8, 4, 1)) if _divides(p, config))
        others = [f"{size}/{patch}" for size in VITS[small]]
    else:
        others = RESNETS[small]
    others = {name: variants.parse(name, **options) for name in others}
    size = count_params(config)
    name = min(others, key=lambda name: abs(np.log(count_params(others[name]) / size)))
    networks = [config, others[name]]

    def draw(*, phrases):
        titles = [
            f"{label}: {sizes.count(count_params(network))}"
            for label, network in zip((phrases("this_model"), name), networks, strict=True)
        ]
        (vit, cnn), titles = (networks[::-1], titles[::-1]) if is_cnn else (networks, titles)
        return walkthrough.networks(
            _vit_stages(vit, phrases), _cnn_stages(cnn, phrases), titles, phrases=phrases
        )

    return draw


def _divides(patch, config):
    return all(side % patch == 0 for side in config.size)


def _vit_stages(config, phrases):
    """Return the stages of a ViT for `walkthrough.networks`."""
    image = dict(title=phrases("image"), grid=config.size, channels=config.channels, field=1)
    part = dict(grid=config.grid, channels=config.width)
    blocks = dict.fromkeys((1, config.depth))
    titles = [phrases("vit_block", block=block) for block in blocks]
    return [
        image,
        part | dict(title=phrases("vit_patches"), field=max(config.patch_size)),
        *(part | dict(title=title, field=None) for title in titles),
    ]


def _cnn_stages(config, phrases):
    """Return the stages of a CNN for `walkthrough.networks`."""
    plan = variants.convolutions(config)
    fields = receptive_field.theoretical(plan, pool=len(config.layers) == 4)
    *_, channels, size = plan["stem"]
    rows = [
        dict(title=phrases("image"), grid=config.size, channels=config.channels, field=1),
        dict(title=phrases("cnn_stem"), grid=size, channels=channels, field=fields["stem"].size),
    ]
    for i in range(len(config.layers)):
        stage = f"layer{i + 1}"
        *_, channels, size = [plan[path] for path in plan if path.startswith(f"{stage}/")][-1]
        field = fields[stage].size
        rows.append(
            dict(
                title=phrases("cnn_stage", stage=i + 1),
                grid=size,
                channels=channels,
                field=None if field >= 2 * max(config.size) else field,
            )
        )
    return rows
