"""SVG diagrams of a Vision Transformer, with all shapes and numbers computed from its config.

The drawing functions return SVG text. Common arguments:
  model: the model's `ViTConfig`.
  phrases: `Catalog` of the section "figures".
"""

import math

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.drawing import SMALL, Drawing, box_width, format_shape, format_size
from vit_jax.figures.style import BLUE, GREEN, ORANGE, PURPLE
from vit_jax.layers import kernels
from vit_jax.schema import pair

# Longer sequences are abbreviated to the first three elements, an ellipsis and the last one.
MAX_HEADS = 4
MAX_TOKENS = 5
STAGE_SPACING = 44  # px
SKIP_GAP = 9  # px, between a box and the start of the residual connection around it
STAGE_COLORS = {"heads": ORANGE, "joined": ORANGE, "mlp": GREEN, "blocks": GREEN, "cnn": GREEN}
STAGE_COLORS |= {"norm": PURPLE, "map": ORANGE}


def token_counts(model):
    """Return the patch grid and the numbers of patches, prefix tokens and tokens."""
    patches = math.prod(model.grid)
    return model.grid, patches, model.prefix, patches + model.prefix


def stage_title(stage, phrases=ENGLISH):
    """Return the title of an `analysis.stages.Stage`, indented if it is in the encoder blocks."""
    name = phrases(f"stage_{stage.key}", **stage.values)
    return f"  {name}" if stage.inside else name


def whole(rows, title, *, phrases=ENGLISH):
    """Draw a model from the image to the logits, one box per stage with its shape and parameters.

    The residual connections of the encoder blocks are drawn too.

    Args:
      rows: (stage, shape, parameters), from `analysis.stages.from_config`.
      title: title of the SVG.
      phrases: `Catalog` of the section "figures".
    """
    d = Drawing(title)
    names = [stage_title(stage, phrases).strip().replace("->", "→") for stage, _, _ in rows]
    width = max(map(box_width, names))
    left = 48
    center = left + width / 2
    y = 20
    block_edges = []  # top and bottom of the boxes inside the encoder blocks
    skip_start = None  # y at which the next residual connection starts
    last_bottom = None
    depth = next((s.values["depth"] for s, _, _ in rows if s.key == "blocks"), 1)
    for name, (stage, shape, count) in zip(names, rows, strict=True):
        color = STAGE_COLORS.get(stage.key, None if stage.inside else BLUE)
        _, _, _, top, bottom = d.box(left, y, name, color=color, width=width)
        if last_bottom is not None:
            d.arrow((center, last_bottom), (center, top))
        if stage.inside:
            skip_start = top - SKIP_GAP if skip_start is None else skip_start
            block_edges += [top, bottom]
        if stage.key == "residual":
            x = left - 16
            d.arrow((center, skip_start), (x, skip_start), (x, y), (left, y))
            skip_start = bottom + SKIP_GAP
        d.text(left + width + 22, y, shape.replace("x", " × "), "start")
        if count:
            key = "parameter_count_blocks" if stage.inside and depth > 1 else "parameter_count"
            d.note(left + width + 185, y, phrases(key, count=count, depth=depth))
        last_bottom = bottom
        y += STAGE_SPACING
    if block_edges:
        top, bottom = min(block_edges) - 1.7 * SKIP_GAP, max(block_edges) + SKIP_GAP
        box = dict(width=width + left, height=bottom - top, dashed=True)
        d.box(16, (top + bottom) / 2, "", **box)
    return str(d)


def self_attention(model, *, phrases=ENGLISH):
    """Draw one attention head: queries, keys, values, the softmax [n × n], the weighted sum."""
    _, _, _, n = token_counts(model)
    width = model.width
    e = width // model.num_heads
    d = Drawing(phrases("self_attention", tokens=n, dim=e))
    x = d.box(8, 92, phrases("tokens_x"), format_shape(n, width), color=BLUE)
    projections = []
    for name, y in (("Q = X W_q", 32), ("K = X W_k", 92), ("V = X W_v", 152)):
        projections.append(d.box(x[2] + 40, y, name, format_shape(n, e), color=ORANGE))
        d.link(x, projections[-1])
    q, k, v = projections
    scores = d.box(q[2] + 40, 62, f"Q Kᵀ / √{e}", format_shape(n, n), color=GREEN)
    d.link(q, scores, 54)
    d.link(k, scores, 70)
    weights = d.box(scores[2] + 34, 62, phrases("softmax"), format_shape(n, n), color=GREEN)
    d.link(scores, weights)
    out = d.box(weights[2] + 40, 107, phrases("weighted_values"), format_shape(n, e), color=ORANGE)
    d.link(weights, out, 99)
    d.link(v, out, 115, bend=weights[2] + 20 - v[2])
    caption = phrases("first_row" if model.has_class_token else "each_row", count=n)
    d.text(scores[0], 20, caption, "start", font_size=SMALL)
    return str(d)


def multi_head(model, *, phrases=ENGLISH):
    """Draw all heads of a layer, their concatenation and the output projection."""
    _, _, _, n = token_counts(model)
    width = model.width
    h = model.num_heads
    e = width // h
    d = Drawing(phrases("multi_head", heads=h, dim=e))
    heads = list(range(h)) if h <= MAX_HEADS else [0, 1, 2, "⋮", h - 1]
    spacing = 46
    middle = 30 + (len(heads) - 1) * spacing / 2
    x = d.box(8, middle, phrases("tokens_x"), format_shape(n, width), color=BLUE)
    boxes = []
    formula = f"softmax {format_shape(n, n)} · V → {format_shape(n, e)}"
    for i, head in enumerate(heads):
        lines = phrases("head", head=head), formula
        boxes.append(d.box(x[2] + 44, 30 + i * spacing, *lines, color=ORANGE))
        d.link(x, boxes[-1])
    joined, *_ = d.chain(
        boxes[0][2] + 60,
        middle,
        (phrases("heads_joined"), f"{h} × {e} = {width:,}", BLUE),
        (phrases("linear_out"), format_shape(width, width), GREEN),
        (phrases("tokens"), format_shape(n, width), BLUE),
    )
    for box in boxes:
        d.link(box, joined, bend=30)
    return str(d)


def patch_embedding(model, *, phrases=ENGLISH):
    """Draw both forms of patch embedding: a strided convolution, and unfold with a linear layer."""
    grid, n, _, _ = token_counts(model)
    c, width = model.channels, model.width
    patch = format_size(model.patch_size)
    stride = str(model.patch) if isinstance(model.patch, int) else patch
    d = Drawing(phrases("patch_embedding", patches=n, patch=patch, width=width))
    start = (phrases("image"), format_shape(*model.size, c), BLUE)
    pixels = math.prod(model.patch_size) * c
    chains = {
        "conv": (
            start,
            (
                phrases("convolution", patch=patch, stride=stride),
                phrases("channels", before=c, after=width),
                ORANGE,
            ),
            (phrases("feature_map"), format_shape(*grid, width), None),
            (phrases("row_by_row"), format_shape(n, width), BLUE),
        ),
        "linear": (
            start,
            (phrases("unfold"), format_shape(n, pixels), None),
            (phrases("linear", before=pixels, after=width), format_shape(pixels, width), ORANGE),
            (phrases("tokens"), format_shape(n, width), BLUE),
        ),
    }
    for (kind, boxes), y in zip(chains.items(), (30, 108), strict=True):
        *_, last = d.chain(8, y, *boxes)
        note = phrases(
            "runs_here" if kind == kernels.patch_embedding(model.patch_embed) else "same_function"
        )
        d.note(last[2] + 14, y, note)
    d.text(60, 69, "=", font_size=20)
    d.note(110, 69, phrases("either_way", count=(pixels + 1) * width), font_size=SMALL)
    return str(d)


def positions(model, *, phrases=ENGLISH):
    """Draw the position embeddings that are added to the tokens."""
    (rows, columns), n, prefix, tokens = token_counts(model)
    width = model.width
    learned = model.pos_embed == "learned"
    kind = phrases("learned" if learned else "fixed")
    d = Drawing(phrases("positions", kind=kind, rows=rows, columns=columns))
    names = [*range(1, n + 1)] if n <= MAX_TOKENS else [1, 2, 3, "…", n]
    names = ([0] if model.has_class_token else []) + names  # 0: [CLS]
    x = 90
    d.text(8, 28, phrases("tokens"), "start")
    d.text(8, 78, phrases("plus_positions"), "start")
    for name in names:
        text, color = (str(name), BLUE) if name else ("[CLS]", PURPLE)
        top = d.box(x, 28, text, color=color, width=52)
        if name or learned:  # [CLS] has no fixed position embedding
            bottom = d.box(x, 78, f"p {name}", color=GREEN, width=52)
            d.arrow((x + 26, bottom[3]), (x + 26, top[4]))
        x = top[2] + 12
    count = tokens if learned else n
    d.text(x + 10, 28, format_shape(tokens, width), "start")
    trained = phrases("no_parameters")
    if learned:
        trained = phrases("parameter_count", count=count * width)
    d.text(x + 10, 78, f"{format_shape(count, width)}, {kind}, {trained}", "start")
    note = phrases("position_grid", last=n, rows=rows, columns=columns)
    d.note(90, 112, note, font_size=SMALL)
    return str(d)


def dino(model, config, *, phrases=ENGLISH):
    """Draw the student and the teacher of DINO (figure 2 of arXiv:2104.14294).

    Args:
      model: `ViTConfig` of both.
      config: config of the run, for its `objective`, `augment` and `model` keys.
      phrases: `Catalog` of the section "figures".
    """
    objective = config.objective
    channels = config.model.channels
    num_local = config.augment.local_views
    local_size = config.augment.local_size
    d = Drawing(phrases("dino", count=objective.out_dim))
    picture = d.box(8, 105, phrases("image"), color=BLUE)
    left = picture[2] + 40
    shape = format_shape(*model.size, channels)
    global_crops = d.box(left, 50, phrases("global_crops"), shape, color=BLUE)
    if num_local:
        shape = format_shape(*pair(local_size), channels)
        lines = phrases("local_crops", count=num_local), shape
        local_crops = d.box(left, 160, *lines, color=BLUE)
    else:
        lines = phrases("no_local_crops"), "(local_views = 0)"
        local_crops = d.box(left, 160, *lines, dashed=True)
    d.link(picture, global_crops)
    if num_local:
        d.link(picture, local_crops)
    sizes = (model.width, objective.hidden_dim, objective.hidden_dim)
    sizes += (objective.bottleneck_dim, objective.out_dim)
    head = " → ".join(f"{size:,}" for size in sizes)
    left = max(global_crops[2], local_crops[2]) + 60
    names = [phrases(name, width=model.width, depth=model.depth) for name in ("teacher", "student")]
    temp = f"{objective.teacher_temp}"
    if objective.warmup_teacher_temp != objective.teacher_temp:
        temp = f"({objective.warmup_teacher_temp} → {temp})"
    width = max(box_width(name, head) for name in names)
    teacher = d.box(left, 50, names[0], head, width=width, color=GREEN)
    student = d.box(left, 160, names[1], head, width=width, color=ORANGE)
    d.link(global_crops, teacher)
    d.link(global_crops, student, 152, bend=left - 30 - global_crops[2])
    if num_local:
        d.link(local_crops, student, 168)
    middle = (teacher[0] + teacher[2]) / 2
    d.arrow((middle, student[3]), (middle, teacher[4]), dashed=True)
    d.text(middle + 10, 98, phrases("moving_average"), "start", font_size=SMALL)
    momentum = phrases("momentum", start=objective.momentum)
    d.text(middle + 10, 112, momentum, "start", font_size=SMALL)
    lines = phrases("teacher_softmax", temp=temp), phrases("no_gradient")
    teacher_softmax = d.box(teacher[2] + 34, 50, *lines, color=GREEN)
    d.link(teacher, teacher_softmax)
    line = phrases("student_softmax", temp=objective.student_temp)
    student_softmax = d.box(student[2] + 34, 160, line, color=ORANGE)
    d.link(student, student_softmax)
    x = (teacher_softmax[0] + teacher_softmax[2]) / 2
    loss = d.box(x - 60, 105, phrases("cross_entropy"), color=PURPLE, width=120)
    d.arrow((x, teacher_softmax[4]), (x, loss[3]))
    d.arrow((x, student_softmax[3]), (x, loss[4]))
    return str(d)
