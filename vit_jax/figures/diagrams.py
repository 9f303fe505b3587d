"""Drawings of a Vision Transformer with a model's own numbers, as SVG text.

model: its `ViTConfig`. phrases: the labels, a `Catalog` of "figures". All numbers in a drawing are
computed from the model's config.
"""

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.drawing import SMALL, Drawing, shape, wide
from vit_jax.figures.style import BLUE, GREEN, ORANGE, PURPLE

MAX_HEADS, MAX_TOKENS = 4, 5  # that are drawn one by one
STAGE_COLORS = {"heads": ORANGE, "joined": ORANGE, "mlp": GREEN, "blocks": GREEN, "cnn": GREEN}
STAGE_COLORS |= {"norm": PURPLE, "map": ORANGE}


def grid_of(model):
    """-> side of the grid, patches, tokens before them, tokens"""
    side = model.grid[0]
    return side, side**2, model.prefix, side**2 + model.prefix


def stage_title(stage, phrases=ENGLISH):
    """The name of an `analysis.stages.Stage`, indented if it is inside the encoder blocks."""
    name = phrases(f"stage_{stage.key}", **stage.values)
    return f"  {name}" if stage.inside else name


def whole(rows, title, *, phrases=ENGLISH):
    """From the image to the classes, top down: a box per stage, its shape and parameters beside it.

    rows: (stage, shape, parameters) as `analysis.stages.from_config` returns them. The skip
    connections of the encoder blocks are drawn.
    """
    d = Drawing(title)
    names = [stage_title(stage, phrases).strip().replace("->", "→") for stage, _, _ in rows]
    width = max(map(wide, names))
    y, left, frame, came, last = 20, 40, [], None, None
    for name, (stage, size, count) in zip(names, rows, strict=True):
        color = STAGE_COLORS.get(stage.key, None if stage.inside else BLUE)
        place = d.box(left, y, name, color=color, width=width)
        if last is not None:
            d.arrow((left + width / 2, last), (left + width / 2, place[3]))
        if stage.inside:
            came = last + 5 if came is None else came
            frame += [place[3], place[4]]
        if stage.key == "residual":
            x = left - 14
            d.arrow((left + width / 2, came), (x, came), (x, y), (left, y))
            came = place[4] + 5
        d.text(left + width + 14, y, size.replace("x", " × "), "start")
        d.note(left + width + 175, y, phrases("parameter_count", count=count) if count else "")
        last, y = place[4], y + 38
    if frame:
        middle, height = (min(frame) + max(frame)) / 2, max(frame) - min(frame) + 18
        d.box(8, middle, "", width=left + width, height=height, dashed=True)
    return str(d)


def self_attention(model, *, phrases=ENGLISH):
    """One head: queries, keys, values, the softmax [n × n], the weighted sum."""
    _, _, before, n = grid_of(model)
    width, e = model.width, model.width // model.num_heads
    d = Drawing(phrases("self_attention", tokens=n, dim=e))
    x = d.box(8, 92, phrases("tokens_x"), shape(n, width), color=BLUE)
    parts = []
    for name, y in (("Q = X W_q", 32), ("K = X W_k", 92), ("V = X W_v", 152)):
        parts.append(d.box(x[2] + 40, y, name, shape(n, e), color=ORANGE))
        d.link(x, parts[-1])
    q, k, v = parts
    scores = d.box(q[2] + 40, 62, f"Q Kᵀ / √{e}", shape(n, n), color=GREEN)
    d.link(q, scores, 54)
    d.link(k, scores, 70)
    weights = d.box(scores[2] + 34, 62, phrases("softmax"), shape(n, n), color=GREEN)
    d.link(scores, weights)
    out = d.box(weights[2] + 40, 107, phrases("weighted_values"), shape(n, e), color=ORANGE)
    d.link(weights, out, 99)
    d.link(v, out, 115, turn=weights[2] + 20 - v[2])
    words = phrases("first_row" if before else "each_row", count=n)
    d.text(scores[0], 20, words, "start", font_size=SMALL)
    return str(d)


def multi_head(model, *, phrases=ENGLISH):
    """All heads side by side, concatenated and mixed by a linear layer."""
    _, _, _, n = grid_of(model)
    width, h = model.width, model.num_heads
    e = width // h
    d = Drawing(phrases("multi_head", heads=h, dim=e))
    drawn = list(range(1, h + 1)) if h <= MAX_HEADS else [1, 2, 3, "⋮", h]
    tall = 46
    middle = 30 + (len(drawn) - 1) * tall / 2
    x = d.box(8, middle, phrases("tokens_x"), shape(n, width), color=BLUE)
    boxes = []
    for i, head in enumerate(drawn):
        words = f"softmax {shape(n, n)} · V → {shape(n, e)}"
        place = x[2] + 44, 30 + i * tall
        boxes.append(d.box(*place, phrases("head", head=head), words, color=ORANGE))
        d.link(x, boxes[-1])
    joined, *_ = d.chain(
        boxes[0][2] + 60,
        middle,
        (phrases("heads_joined"), f"{h} × {e} = {width:,}", BLUE),
        (phrases("linear_out"), shape(width, width), GREEN),
        (phrases("tokens"), shape(n, width), BLUE),
    )
    for box in boxes:
        d.link(box, joined, turn=30)
    return str(d)


def patch_embedding(model, *, phrases=ENGLISH):
    """A convolution with the patch's stride, and the same as unfold and linear."""
    side, n, _, _ = grid_of(model)
    p, c, width, image = model.patch, model.channels, model.width, model.image
    d = Drawing(phrases("patch_embedding", patches=n, patch=p, width=width))
    start = (phrases("image"), shape(image, image, c), BLUE)
    pixels = p * p * c
    lanes = {
        "conv": (
            start,
            (phrases("convolution", patch=p), phrases("channels", before=c, after=width), ORANGE),
            (phrases("feature_map"), shape(side, side, width), None),
            (phrases("row_by_row"), shape(n, width), BLUE),
        ),
        "linear": (
            start,
            (phrases("unfold"), shape(n, pixels), None),
            (phrases("linear", before=pixels, after=width), shape(pixels, width), ORANGE),
            (phrases("tokens"), shape(n, width), BLUE),
        ),
    }
    for (how, boxes), y in zip(lanes.items(), (30, 108), strict=True):
        placed = d.chain(8, y, *boxes)
        words = phrases("runs_here" if how == model.patch_embed else "same_function")
        d.note(placed[-1][2] + 14, y, words)
    d.text(60, 69, "=", font_size=20)
    d.note(110, 69, phrases("either_way", count=(pixels + 1) * width), font_size=SMALL)
    return str(d)


def positions(model, *, phrases=ENGLISH):
    """What is added to the tokens to tell them where they are."""
    side, n, before, tokens = grid_of(model)
    width, learned = model.width, model.pos_embed == "learned"
    kind = phrases("learned" if learned else "fixed")
    d = Drawing(phrases("positions", kind=kind, side=side))
    names = [*range(1, n + 1)] if n <= MAX_TOKENS else [1, 2, 3, "…", n]
    names = ([0] if before else []) + names
    x = 90
    d.text(8, 28, phrases("tokens"), "start")
    d.text(8, 78, phrases("plus_positions"), "start")
    for name in names:
        text, color = (str(name), BLUE) if name else ("[CLS]", PURPLE)
        top = d.box(x, 28, text, color=color, width=52)
        if name or learned:  # fixed positions are of the patches alone
            below = d.box(x, 78, f"p {name}", color=GREEN, width=52)
            d.arrow((x + 26, below[3]), (x + 26, top[4]))
        x = top[2] + 12
    rows = tokens if learned else n
    d.text(x + 10, 28, shape(tokens, width), "start")
    count = phrases("parameter_count", count=rows * width) if learned else phrases("no_parameters")
    d.text(x + 10, 78, f"{shape(rows, width)}, {kind}, {count}", "start")
    d.note(90, 112, phrases("position_grid", last=n, side=side), font_size=SMALL)
    return str(d)


def dino(model, config, *, phrases=ENGLISH):
    """Student and teacher of DINO (figure 2 of arXiv:2104.14294). config: of the run."""
    o, a, c = config.objective, config.augment, config.model.channels
    local, image = a.local_views, config.model.image
    d = Drawing(phrases("dino", count=o.out_dim))
    picture = d.box(8, 105, phrases("image"), color=BLUE)
    left = picture[2] + 40
    crops = d.box(left, 50, phrases("global_crops"), shape(image, image, c), color=BLUE)
    if local:
        lines = phrases("local_crops", count=local), shape(a.local_size, a.local_size, c)
        small = d.box(left, 160, *lines, color=BLUE)
    else:
        small = d.box(left, 160, phrases("no_local_crops"), "(local_views = 0)", dashed=True)
    for box in (crops, small) if local else (crops,):
        d.link(picture, box)
    sizes = (model.width, o.hidden_dim, o.hidden_dim, o.bottleneck_dim, o.out_dim)
    head = " → ".join(f"{size:,}" for size in sizes)
    left = max(crops[2], small[2]) + 60
    names = [phrases(who, width=model.width, depth=model.depth) for who in ("teacher", "student")]
    temp = f"{o.teacher_temp}"
    if o.warmup_teacher_temp != o.teacher_temp:
        temp = f"({o.warmup_teacher_temp} → {temp})"
    width = max(wide(name, head) for name in names)
    teacher = d.box(left, 50, names[0], head, width=width, color=GREEN)
    student = d.box(left, 160, names[1], head, width=width, color=ORANGE)
    d.link(crops, teacher)
    d.link(crops, student, 152, turn=left - 30 - crops[2])
    if local:
        d.link(small, student, 168)
    middle = (teacher[0] + teacher[2]) / 2
    d.arrow((middle, student[3]), (middle, teacher[4]), dashed=True)
    d.text(middle + 10, 98, phrases("moving_average"), "start", font_size=SMALL)
    d.text(middle + 10, 112, phrases("momentum", start=o.momentum), "start", font_size=SMALL)
    tail = phrases("teacher_softmax", temp=temp), phrases("no_gradient")
    sharp = d.box(teacher[2] + 34, 50, *tail, color=GREEN)
    d.link(teacher, sharp)
    tail = phrases("student_softmax", temp=o.student_temp)
    soft = d.box(student[2] + 34, 160, tail, color=ORANGE)
    d.link(student, soft)
    end = (sharp[0] + sharp[2]) / 2
    loss = d.box(end - 60, 105, phrases("cross_entropy"), color=PURPLE, width=120)
    d.arrow((end, sharp[4]), (end, loss[3]))
    d.arrow((end, soft[3]), (end, loss[4]))
    return str(d)
