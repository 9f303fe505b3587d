"""The flags that name a model, and what they stand for: a run or a weight file."""

from pathlib import Path

from absl import flags

from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.inference import of_file, of_run
from vit_jax.workdir import storage


def define_flags(against=True):
    """--workdir or --weights with --model, which of a run's weights; --against another one."""
    flags.DEFINE_string("workdir", None, "folder of a run; an image may be test:0, a row of it")
    flags.DEFINE_string("weights", None, "file.safetensors, instead of --workdir")
    flags.DEFINE_string("model", None, "of --weights: its name, such as vit_small_patch16_224")
    flags.DEFINE_string("class_names", None, "of --weights: a text file with a class a line")
    flags.DEFINE_string("checkpoint", "best", "of runs: best, latest or a step")
    flags.DEFINE_bool("raw", False, "of runs: the trained weights, not average or teacher")
    if against:
        flags.DEFINE_string("against", None, "folder of another run or file.safetensors, beside it")
        flags.DEFINE_string("against_model", None, "of a file --against: its name")


def define_view_flags():
    """How images are prepared, in place of what goes with the weights; for `override`."""
    flags.DEFINE_list("mean", None, "mean of images in [0, 1] per channel, or one for all")
    flags.DEFINE_list("std", None, "standard deviation per channel, or one for all")
    flags.DEFINE_float("crop", None, "side of the center crop / short side of the image")


def check_flags(flags):
    """What does not go together, before the wait for JAX. Raises UserError.

    -> the configs of the models that are named, in order; None for a weight file.
    """
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("pass either --workdir=DIR or --weights=FILE; see --help")
    if flags.workdir and (flags.model or flags.class_names):
        raise UserError("--model and --class_names go with --weights; a run knows its own")
    if flags.weights and storage.is_folder(flags.weights):
        raise UserError(f"{flags.weights} is a directory; to load a run, pass --workdir")
    runs, against = [flags.workdir], _against(flags)
    if against:
        runs.append(against if storage.is_folder(against) else None)
    if _against(flags, "_model") and None not in runs[1:]:
        raise UserError("--against_model goes with --against=FILE.safetensors")
    if (flags.raw or flags.checkpoint != "best") and not any(runs):
        raise UserError("--raw and --checkpoint go with --workdir; a file has one set of weights")
    return [run and load_config(run) for run in runs]


def of_flags(flags):
    """-> [Trained], a second one with --against; of flags that were checked. Raises UserError."""
    of_runs = dict(which=flags.checkpoint, raw=flags.raw)
    if flags.workdir:
        found = [of_run(flags.workdir, **of_runs)]
    else:
        classes = flags.class_names and _read_names(flags.class_names)
        found = [of_file(flags.weights, flags.model, classes)]
    if against := _against(flags):
        is_run = storage.is_folder(against)
        found.append(
            of_run(against, **of_runs) if is_run else of_file(against, flags.against_model)
        )
    return found


def _against(flags, end=""):
    """--against or --against_model, of a tool that has no such flag None."""
    return getattr(flags, f"against{end}", None)


def _read_names(path):
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from None


def override(model, flags):
    """--mean, --std and --crop in place of what goes with the weights.

    -> " (mean ..., std ..., crop ...)" where no run says what they are, else "". Raises UserError.
    """
    for key in ("mean", "std"):
        if getattr(flags, key) is None:
            continue
        try:
            values = tuple(float(word) for word in getattr(flags, key))
        except ValueError:
            raise UserError(f"--{key} is numbers, such as 0.5,0.5,0.5") from None
        values *= model.channels if len(values) == 1 else 1
        if len(values) != model.channels or key == "std" and min(values) <= 0:
            raise UserError(f"--{key}={values} must be {model.channels} numbers, std above 0")
        setattr(model, key, values)
    if flags.crop is not None:
        if not 0 < flags.crop <= 1:
            raise UserError(f"--crop={flags.crop} must be above 0 and at most 1")
        model.crop = flags.crop
    if model.config is not None:
        return ""
    mean, std = (",".join(f"{x:g}" for x in values) for values in (model.mean, model.std))
    return f" (mean {mean}, std {std}, crop {model.crop:g}; --mean, --std, --crop)"
