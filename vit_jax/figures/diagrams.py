"""The drawings of a Vision Transformer with a model's own numbers, as SVG text.

model: its `ViTConfig`. No number in a drawing is fixed.
"""

from vit_jax.figures.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    Drawing,
    shape,
    wide,
)

MOST_HEADS, MOST_TOKENS = 4, 5  # that are drawn one by one


def grid_of(model):
    """-> side of the grid, patches, tokens before them, tokens"""
    side = model.grid[0]
    return side, side**2, model.prefix, side**2 + model.prefix


def whole(rows, title):
    """From the image to the classes, top down: a box a stage, its shape and parameters beside it.

    rows: (stage, shape, parameters) as `analysis.stages` has them; those that begin with two
    spaces are inside the encoder blocks, whose skip connections are drawn.
    """
    d = Drawing(title)
    rows = [(name.replace("->", "→"), *rest) for name, *rest in rows]
    width = max(wide(name.strip()) for name, _, _ in rows)
    y, left, frame, came, last = 20, 40, [], None, None
    for name, size, count in rows:
        inside, skip = name.startswith("  "), name.startswith("  +")
        color = _color(name)
        place = d.box(left, y, name.strip(), color=color, width=width)
        if last is not None:
            d.arrow((left + width / 2, last), (left + width / 2, place[3]))
        if inside:
            came = last + 5 if came is None else came
            frame += [place[3], place[4]]
        if skip:
            x = left - 14
            d.arrow((left + width / 2, came), (x, came), (x, y), (left, y))
            came = place[4] + 5
        d.text(left + width + 14, y, size.replace("x", " × "), "start")
        words = f"{count:,} parameters" if count else ""
        d.text(left + width + 175, y, words, "start", fill_opacity=0.75)
        last, y = place[4], y + 38
    if frame:
        middle, height = (min(frame) + max(frame)) / 2, max(frame) - min(frame) + 18
        d.box(8, middle, "", width=left + width, height=height, dashed=True)
    return str(d)


def _color(name):
    for words, color in ((("attention", "heads"), ORANGE), (("MLP", "blocks"), GREEN)):
        if any(word in name for word in words):
            return color
    return PURPLE if "Norm" in name else BLUE if name[0] != " " else None


def self_attention(model):
    """One head: queries, keys, values, the softmax [n × n], the weighted sum."""
    _, _, before, n = grid_of(model)
    width, e = model.width, model.width // model.num_heads
    d = Drawing(f"Self-attention of one head: {n} tokens, {e} dimensions")
    x = d.box(8, 92, "tokens X", shape(n, width), color=BLUE)
    parts = []
    for name, y in (("Q = X W_q", 32), ("K = X W_k", 92), ("V = X W_v", 152)):
        part = d.box(x[2] + 40, y, name, shape(n, e), color=ORANGE)
        d.arrow((x[2], 92), (x[2] + 20, 92), (x[2] + 20, y), (part[0], y))
        parts.append(part)
    q, k, v = parts
    scores = d.box(q[2] + 40, 62, f"Q Kᵀ / √{e}", shape(n, n), color=GREEN)
    for part, y in ((q, 54), (k, 70)):
        turn = part[2] + 20
        d.arrow((part[2], part[1]), (turn, part[1]), (turn, y), (scores[0], y))
    weights = d.box(scores[2] + 34, 62, "softmax of each row", shape(n, n), color=GREEN)
    d.arrow((scores[2], 62), (weights[0], 62))
    out = d.box(weights[2] + 40, 107, "weights · V", shape(n, e), color=ORANGE)
    turn = weights[2] + 20
    d.arrow((weights[2], 62), (turn, 62), (turn, 99), (out[0], 99))
    d.arrow((v[2], 152), (turn, 152), (turn, 115), (out[0], 115))
    first = f"its first row: how [CLS] shares its attention out over {n} tokens"
    words = first if before else f"row i: how patch i shares its attention out over {n} patches"
    d.text(scores[0], 20, f"{words}; each row adds up to 1", "start", font_size=11)
    return str(d)


def multi_head(model):
    """All heads side by side, joined and mixed by a linear layer."""
    _, _, _, n = grid_of(model)
    width, h = model.width, model.num_heads
    e = width // h
    d = Drawing(f"Multi-head attention: {h} heads of {e}")
    few = h <= MOST_HEADS
    drawn = list(range(1, h + 1)) if few else [1, 2, 3, None, h]
    tall = 46
    middle = 30 + (len(drawn) - 1) * tall / 2
    x = d.box(8, middle, "tokens X", shape(n, width), color=BLUE)
    left, right = x[2] + 44, 0
    for i, head in enumerate(drawn):
        y = 30 + i * tall
        if head is None:
            d.text(left + 90, y, "⋮")
            continue
        words = f"softmax {shape(n, n)} · V → {shape(n, e)}"
        box = d.box(left, y, f"head {head}", words, color=ORANGE)
        d.arrow((x[2], middle), (x[2] + 22, middle), (x[2] + 22, y), (left, y))
        right = box[2]
    joined = d.box(right + 60, middle, "heads joined", f"{h} × {e} = {width:,}", color=BLUE)
    for i, head in enumerate(drawn):
        y, turn = 30 + i * tall, right + 30
        if head is not None:
            d.arrow((right, y), (turn, y), (turn, middle), (joined[0], middle))
    out = d.box(joined[2] + 34, middle, "linear W_o", shape(width, width), color=GREEN)
    d.arrow((joined[2], middle), (out[0], middle))
    end = d.box(out[2] + 34, middle, "tokens", shape(n, width), color=BLUE)
    d.arrow((out[2], middle), (end[0], middle))
    return str(d)


def patch_embedding(model):
    """A convolution with the patch's stride, and the same as unfold and linear."""
    side, n, _, _ = grid_of(model)
    p, c, width, image = model.patch, model.channels, model.width, model.image
    d = Drawing(f"Patch embedding: {n} patches of {p} × {p} pixels become {n} × {width}")
    used = {"conv": 0, "linear": 1}[model.patch_embed]
    start = ("image", shape(image, image, c), BLUE)
    count = f"{(p * p * c + 1) * width:,} parameters"
    lanes = (
        (
            start,
            (f"convolution {p} × {p}, stride {p}", f"{c} → {width} channels", ORANGE),
            ("feature map", shape(side, side, width), None),
            ("row by row", shape(n, width), BLUE),
        ),
        (
            start,
            ("unfold into patches", shape(n, p * p * c), None),
            (f"linear {p * p * c:,} → {width}", shape(p * p * c, width), ORANGE),
            ("tokens", shape(n, width), BLUE),
        ),
    )
    for i, boxes in enumerate(lanes):
        placed = d.chain(8, 30 + 78 * i, *boxes)
        words = "what this model runs" if i == used else "the same function, same weights"
        d.text(placed[-1][2] + 14, 30 + 78 * i, words, "start", fill_opacity=0.75)
    d.text(60, 69, "=", font_size=20)
    d.text(110, 69, f"either way {count}", "start", font_size=11, fill_opacity=0.75)
    return str(d)


def positions(model):
    """What is added to the tokens to tell them where they are."""
    side, n, before, tokens = grid_of(model)
    width, learned = model.width, model.pos_embed == "learned"
    kind = "learned" if learned else "fixed sines and cosines"
    d = Drawing(f"Positions, {kind}: {side} × {side} patches")
    few = n <= MOST_TOKENS
    names = [*range(1, n + 1)] if few else [1, 2, 3, None, n]
    names = (["[CLS]"] if before else []) + names
    x = 90
    d.text(8, 28, "tokens", "start")
    d.text(8, 78, "+ positions", "start")
    for name in names:
        if name is None:
            d.text(x + 14, 28, "…")
            d.text(x + 14, 78, "…")
            x += 28 + 12
            continue
        cls = name == "[CLS]"
        top = d.box(x, 28, str(name), color=PURPLE if cls else BLUE, width=52)
        bare = cls and not learned  # fixed positions are of the patches alone
        if not bare:
            place = "p 0" if cls else f"p {name}"
            below = d.box(x, 78, place, color=GREEN, width=52)
            d.arrow((x + 26, below[3]), (x + 26, top[4]))
        x = top[2] + 12
    rows = tokens if learned else n
    d.text(x + 10, 28, shape(tokens, width), "start")
    count = f"{rows * width:,} parameters" if learned else "no parameters"
    d.text(x + 10, 78, f"{shape(rows, width)}, {kind}, {count}", "start")
    grid = f"p 1 to p {n}: the {side} × {side} grid of patches, row by row"
    d.text(90, 112, grid, "start", font_size=11, fill_opacity=0.75)
    return str(d)


def dino(model, config):
    """Student and teacher of DINO (figure 2 of arXiv:2104.14294). config: the run's."""
    o, a, c = config.objective, config.augment, config.model.channels
    local, image = a.local_views, config.model.image
    d = Drawing(f"DINO: self-distillation into {o.out_dim:,} prototypes")
    picture = d.box(8, 105, "image", color=BLUE)
    crops = d.box(picture[2] + 40, 50, "2 global crops", shape(image, image, c), color=BLUE)
    small = d.box(
        picture[2] + 40,
        160,
        f"{local} local crops" if local else "no local crops",
        shape(a.local_size, a.local_size, c) if local else "(local_views = 0)",
        color=BLUE if local else None,
        dashed=not local,
    )
    for box in (crops, small) if local else (crops,):
        turn = picture[2] + 20
        d.arrow((picture[2], 105), (turn, 105), (turn, box[1]), (box[0], box[1]))
    head = f"{model.width} → {o.hidden_dim:,} → {o.hidden_dim:,} → {o.bottleneck_dim}"
    head += f" → {o.out_dim:,}"
    left = max(crops[2], small[2]) + 60
    text = f"ViT {model.width} wide, {model.depth} blocks"
    temp = f"{o.teacher_temp}"
    if o.warmup_teacher_temp != o.teacher_temp:
        temp = f"({o.warmup_teacher_temp} → {temp})"
    tail = f"softmax of (output − center) / {temp}"
    width = wide("student: " + text, head)
    teacher = d.box(left, 50, "teacher: " + text, head, width=width, color=GREEN)
    student = d.box(left, 160, "student: " + text, head, width=width, color=ORANGE)
    d.arrow((crops[2], 50), (left, 50))
    d.arrow((crops[2], 50), (left - 30, 50), (left - 30, 152), (left, 152))
    if local:
        d.arrow((small[2], 168), (left, 168))
    middle = (teacher[0] + teacher[2]) / 2
    d.arrow((middle, student[3]), (middle, teacher[4]), dashed=True)
    for y, words in ((98, "moving average,"), (112, f"momentum {o.momentum} → 1")):
        d.text(middle + 10, y, words, "start", font_size=11)
    sharp = d.box(teacher[2] + 34, 50, tail, "no gradient", color=GREEN)
    d.arrow((teacher[2], 50), (sharp[0], 50))
    soft = d.box(student[2] + 34, 160, f"softmax of output / {o.student_temp}", color=ORANGE)
    d.arrow((student[2], 160), (soft[0], 160))
    end = (sharp[0] + sharp[2]) / 2
    loss = d.box(end - 60, 105, "cross-entropy", color=PURPLE, width=120)
    d.arrow((end, sharp[4]), (end, loss[3]))
    d.arrow((end, soft[3]), (end, loss[4]))
    return str(d)
