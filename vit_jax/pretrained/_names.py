"""Names of tensors: checks, wrappers such as `module.`, and files with several sets of weights.

Containers of a training checkpoint, such as {"teacher": {...}}, are wrappers too: a tensor's name
has the keys of its containers, joined by dots. Imports no JAX.
"""

import re

from vit_jax.errors import UserError, printable

OTHER_MODEL = "pass other weights, or --model=NAME of the model that they are of"
MAX_TENSORS = 20_000  # for comparison, a ViT of 48 blocks with LayerScale has 680
MAX_LISTED = 5  # tensors in a message
MAX_NAME_LENGTH = 256  # characters
# Parts at the start of a name that tell nothing about the model.
WRAPPERS = {
    *("module", "_orig_mod", "backbone", "encoder", "net", "network", "trunk", "visual", "img"),
    *("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vision_model", "clip"),
    *("siglip", "vision_tower", "image_encoder", "params"),
}
# Wrappers of one of several sets of weights.
SETS = {
    *("teacher", "student", "model", "model_ema", "ema", "ema_model", "state_dict", "model_state"),
    *("state_dict_ema", "model_state_dict", "target", "momentum_encoder"),
}
UNWRAPPED = "unwrapped"  # name of the set of tensors without such a wrapper
DEFAULT_SET = "teacher"  # of DINO, whose papers evaluate it
# Parts of a training checkpoint or of a model of two towers that are not weights of the ViT.
UNUSED = {
    *("optimizer", "optimizer_state_dict", "optimizers", "optim", "opt", "opt_state", "scheduler"),
    *("lr_scheduler", "lr_schedulers", "scaler", "loss_scaler", "fp16_scaler", "amp", "extra"),
    *("dino_loss", "ibot_loss", "dino_head", "ibot_head", "queue", "args", "config", "epoch"),
    *("text_model", "text_projection", "visual_projection", "logit_scale", "logit_bias", "txt"),
    *("n_averaged", "t", "b", "callbacks", "loops", "hyper_parameters"),
}
# Tensors that are counters or fixed tables.
UNUSED_END = re.compile(r"(^|\.)(num_batches_tracked|position_ids)$")


def check(names):
    """Raise UserError unless there are tensors, not too many, with printable names."""
    if not names:
        raise UserError("the file has no tensors; download it again")
    if len(names) > MAX_TENSORS:
        raise UserError(f"more than {MAX_TENSORS:,} tensors; use other weights")
    for name in names:
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise UserError(f"invalid name of a tensor: '{shorten(name)}'; use other weights")


def check_tensors(tensors, expected, remedy=OTHER_MODEL):
    """Check that the tensors are those of a model.

    Args:
      tensors: {name: array}.
      expected: {name: shape}.
      remedy: what to do if they are not, for the message.

    Raises:
      UserError: if tensors are missing, unexpected or of the wrong shape. It lists the first of
        each kind.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    wrong = [k for k in sorted(expected.keys() & tensors.keys()) if tensors[k].shape != expected[k]]
    shapes = [
        f"'{name}' has shape {list(tensors[name].shape)}, which does not match the model; expected "
        f"{list(expected[name])}"
        for name in wrong
    ]
    problems = [
        _listed("missing tensor", [f"'{name}'" for name in missing]),
        _listed("unexpected tensor", [f"'{name}'" for name in unexpected]),
        _listed("tensor", shapes),
    ]
    if problems := [problem for problem in problems if problem]:
        raise UserError(f"{'; '.join(problems)}; {remedy}")


def _listed(what, items):
    """Return "3 missing tensors: 'a', 'b', 'c'", with the first items; "" if there are none."""
    if not items:
        return ""
    if len(items) == 1:
        return f"{what} {items[0]}"
    more = ", ..." if len(items) > MAX_LISTED else ""
    return f"{len(items):,} {what}s: {', '.join(items[:MAX_LISTED])}{more}"


def shorten(text):
    """Return a text from a file as one printable line of limited length."""
    return printable(" ".join(str(text)[:1000].split()))[:MAX_NAME_LENGTH]


def is_unused(name):
    """Return whether a tensor is a counter, a fixed table or training state, not a weight."""
    return _split(name)[1] is None


def _split(name):
    """Split a name into its set and its name in the model: ("teacher", "blocks.0.norm1.weight").

    The set is UNWRAPPED if the name has no such wrapper; the name in the model is None if it is
    unused.
    """
    which = UNWRAPPED
    rest = name
    while match := re.match(r"(\w+)[./](?=.)", rest):
        part = match[1]
        if part in SETS:
            # "model" and "state_dict" may also wrap the sets, as in state_dict.model_ema.
            which = part if which in (UNWRAPPED, "model", "state_dict") else which
        elif part not in WRAPPERS:
            break
        rest = rest[match.end() :]
    first = re.split(r"[./]", rest, maxsplit=1)[0]
    return which, None if first in UNUSED or UNUSED_END.search(rest) else rest


def unwrap(names, which=""):
    """Remove wrappers from the names of tensors and select one set of weights.

    Args:
      names: names in the file.
      which: the set, such as "student"; "": the only set, or the teacher.

    Returns:
      names: {name in the model: name in the file}.
      note: text about a default that was used, or "".

    Raises:
      UserError: if there is no such set, or there are several and none is the teacher.
    """
    sets = {}
    for name in names:
        key, rest = _split(name)
        if rest is None:
            continue
        other = sets.setdefault(key, {}).setdefault(rest, name)
        if other != name:
            raise UserError(f"tensors '{other}' and '{name}' are both '{rest}' of the model")
    note = ""
    if which:
        if which not in sets:
            known = ", ".join(f"#{key}" for key in sorted(sets)) or "none"
            raise UserError(f"there are no weights '{which}'; sets of weights: {known}")
        return sets[which], note
    # Sets without a common name are parts of one model, such as model.backbone and head.
    sets = {key: x for key, x in sets.items() if x}
    clashing = [
        key
        for key, x in sorted(sets.items())
        if any(x.keys() & other.keys() for k, other in sets.items() if k != key)
    ]
    if not clashing:
        return {rest: name for x in sets.values() for rest, name in x.items()}, note
    others = [f"#{key}" for key in clashing if key != DEFAULT_SET]
    if DEFAULT_SET in clashing:
        note = f"weights of the {DEFAULT_SET}; for others, append {' or '.join(others)}"
        return sets[DEFAULT_SET], note
    choices = " or ".join(f"#{key}" for key in clashing)
    raise UserError(
        f"there are {len(clashing)} sets of weights, {', '.join(map(repr, clashing))}; add one to "
        f"the file name: {choices}"
    )
