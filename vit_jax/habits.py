"""Equivalents of the flags and config keys of timm, DeiT, DINO, MAE, big_vision and Lightning.

Imported only to answer an unknown flag or key.
"""

import re
import shlex
from typing import NamedTuple

from vit_jax import variants

OFF = ("false", "no", "0", "32", "32-true", "fp32", "float32")
UNKNOWN = "..."  # stands for a value that is not given or cannot be converted


class Habit(NamedTuple):
    """What to pass instead of a flag or key of another project.

    Attributes:
      names: names in other projects, separated by spaces, in lower case and with "_" for "-". A
        name with dots is that of a config key.
      instead: "--FLAG" of the command or key of the config; several separated by spaces. ":NAME"
        selects a function of `CONVERSIONS` for the value, "=VALUE" is a fixed value. Alternatives
        are separated by "|": the first one that the command has is used.
      remark: what else to know; without `instead`, the whole hint.
    """

    names: str
    instead: str
    remark: str = ""


TOTAL = "it counts the images of all devices together, not per device"
DEVICES = "leave it out: all devices are used, and config.mesh divides the work among them"
HABITS = (
    # files
    Habit("data_path data_dir data datadir dataset_path data_root root imagenet", "data.dir"),
    Habit("output_dir output outdir out_dir save_dir default_root_dir", "--output | --workdir"),
    Habit("dataset dataset_name input.data.name", "data.dataset"),
    Habit("input.data.split train_split", "data.train"),
    Habit("workers num_workers j", "data.workers"),
    Habit(
        "finetune pretrained pretrained_weights init_weights initial_checkpoint",
        "--weights | model_init",
    ),
    Habit(
        "resume auto_resume ckpt_path resume_from_checkpoint",
        "",
        "leave it out: rerunning the same command resumes from the latest checkpoint",
    ),
    Habit(
        "eval evaluate eval_only test_only validate",
        "",
        "use python -m vit_jax.tools.evaluate --workdir=DIR",
    ),
    Habit(
        "use_multi_epochs_loader use_multi_epochs",
        "",
        "leave it out: workers always run for all epochs",
    ),
    # devices and compilation
    Habit("gpus devices num_gpus accelerator device num_nodes world_size", "", DEVICES),
    Habit("strategy dist_url local_rank", "", DEVICES),
    Habit("amp fp16 use_fp16 bf16 precision amp_dtype native_amp", "model.dtype:dtype"),
    Habit("torchcompile compile torchscript", "", "leave it out: the model is always compiled"),
    Habit("grad_checkpointing gradient_checkpointing", "model.remat=full"),
    # duration
    Habit("epochs total_epochs max_epochs num_epochs", "total_steps:epochs"),
    Habit("max_steps num_steps training_steps", "total_steps"),
    Habit("warmup_epochs", "optim.warmup:epochs"),
    Habit("warmup_steps", "optim.warmup"),
    Habit("log_training_steps log_interval log_every_n_steps print_freq", "log_every"),
    Habit("ckpt_steps checkpoint_steps", "checkpoint_every"),
    Habit("saveckp_freq save_freq", "checkpoint_every:epochs"),
    Habit("log_wandb use_wandb wandb", "loggers=wandb"),
    Habit("log_eval_steps", "eval_every"),
    Habit("check_val_every_n_epoch val_interval eval_interval", "eval_every:epochs"),
    Habit("checkpoint_hist save_top_k", "keep_checkpoints"),
    # batch
    Habit("batch_size batch_size_per_gpu b bs batch train_batch_size", "batch_size", TOTAL),
    Habit("validation_batch_size val_batch_size vb", "eval_batch_size", TOTAL),
    Habit(
        "accum_iter grad_accum_steps accumulate_grad_batches gradient_accumulation_steps",
        "accum_steps",
        "batch_size counts all micro-batches together",
    ),
    # model
    Habit(
        "model model.size model_name model.name arch architecture vit_model backbone",
        "--model:variant | model.variant:variant",
    ),
    Habit("patch_size", "model.patch"),
    Habit("input_size img_size image_size imgsz res", "--image:last | model.image:last"),
    Habit("num_classes nb_classes", "--num_classes | model.num_classes"),
    Habit("drop_path_rate", "model.drop_path"),
    Habit("drop drop_rate dropout_rate", "model.dropout"),
    Habit("embed_dim hidden_size", "model.width"),
    Habit("gp global_pool pool_type", "model.pool"),
    Habit("posemb", "model.pos_embed"),
    # optimizer
    Habit("lr learning_rate", "optim.lr"),
    Habit("blr base_lr", "optim.lr optim.lr_batch=256"),
    Habit(
        "wd",
        "optim.weight_decay",
        "that of big_vision also needs --config.optim.decay_by=schedule",
    ),
    Habit("opt optim optimizer optax_name", "optim.name"),
    Habit("opt_eps adam_eps", "optim.eps"),
    Habit("momentum", "optim.momentum"),
    Habit("min_lr end_lr", "optim.end"),
    Habit(
        "unscale_lr", "", "leave it out: the learning rate is only scaled if optim.lr_batch is set"
    ),
    Habit("warmup_lr", "optim.warmup_start"),
    Habit("clip_grad grad_clip grad_clip_norm gradient_clip_val max_grad_norm", "optim.clip"),
    # augmentation and regularization
    Habit("mixup mixup.p", "augment.mixup"),
    Habit("mixup_prob", "augment.mix_prob"),
    Habit("mixup_switch_prob", "augment.mix_switch"),
    Habit("smoothing", "objective.label_smoothing"),
    Habit("bce_loss", "objective.loss=binary"),
    Habit("aa auto_augment autoaugment randaug", "augment.randaugment"),
    Habit("reprob random_erasing", "augment.erase"),
    Habit("color_jitter", "augment.jitter:jitter"),
    Habit("hflip", "augment.flip"),
    Habit("threeaugment", "augment.three_augment=true"),
    Habit("src", "augment.crop=simple augment.pad=4"),
    Habit("repeated_aug", "augment.repeats=3"),
    Habit("aug_repeats", "augment.repeats"),
    Habit("crop_pct", "--crop | augment.eval_crop"),
    Habit("model_ema_decay ema_decay ema_decay_rate", "objective.ema"),
    Habit("model_ema use_ema", "objective.ema=0.9999"),
    # distillation
    Habit("distillation_type", "objective.distill.kind:distillation"),
    Habit("distillation_alpha", "objective.distill.alpha"),
    Habit("distillation_tau", "objective.distill.tau"),
    Habit("teacher_path", "objective.distill.teacher"),
    Habit("teacher_model", "objective.distill.teacher_model"),
    # evaluation
    Habit("real_labels", "--suite=real", "it reads real.json of --config.data.dir"),
    Habit(
        "valid_labels",
        "",
        "leave it out: --suite=a and --suite=r score only the classes of ImageNet-A and ImageNet-R",
    ),
    # DINO
    Habit("global_crops_scale", "augment.scale"),
    Habit("local_crops_scale", "augment.local_scale"),
    Habit("local_crops_number", "augment.local_views"),
    Habit("local_crops_size", "augment.local_size"),
    Habit("warmup_teacher_temp_epochs", "objective.teacher_temp_warmup:epochs"),
    Habit("momentum_teacher", "objective.momentum"),
    Habit("freeze_last_layer", "optim.freeze_for:epochs"),
)


def hint(name, keys, value="", flags=()):
    """Return what to pass instead of a flag or key, such as "pass --config.total_steps=10ep".

    Args:
      name: name as typed, without "--" and "config.".
      keys: names of the config's keys; () if the command has no config.
      value: value as typed; "" if there is none.
      flags: names of the flags of the command.

    Returns:
      The hint, or None if there is no equivalent among the keys and flags.
    """
    parts, remark = _find(name, keys, flags)
    if not parts:
        return remark if keys and remark else None
    arguments = [shlex.quote(_argument(part, value)) for part in parts]
    return f"pass {' '.join(arguments)}" + (f"; {remark}" if remark else "")


def equivalent(name, keys):
    """Return the key that is meant by a name, or None."""
    parts, _ = _find(name, keys)
    return _target(parts[0]) if parts else None


def _find(name, keys, flags=()):
    """Return the parts of `Habit.instead` that apply, and the remark; ([], "") if unknown."""
    known = {*keys, *(f"--{flag}" for flag in flags)}
    name = name.lower().replace("-", "_")
    # A key of another objective has no equivalent in other groups.
    leaf = name if name.startswith("objective.") else name.rpartition(".")[2]
    for candidate in dict.fromkeys((name, leaf)):
        for habit in HABITS:
            if candidate in habit.names.split():
                for parts in map(str.split, habit.instead.split("|")):
                    if all(_target(part) in known for part in parts):
                        return parts, habit.remark
        if candidate in keys:
            return [candidate], ""
    keys_with_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    return (keys_with_leaf if len(keys_with_leaf) == 1 else []), ""


def _target(part):
    """Return the flag or key of a part of `Habit.instead`, such as "total_steps:epochs"."""
    return re.split("[:=]", part)[0]


def _argument(part, value):
    """Format a part of `Habit.instead` as an argument of the command line."""
    name = _target(part)
    rest = part.removeprefix(name)
    if rest.startswith("="):
        value = rest[1:]
    elif rest:
        value = CONVERSIONS[rest[1:]](value)
    return f"{name if name.startswith('--') else f'--config.{name}'}={value or UNKNOWN}"


def _epochs(value):
    return value if value.endswith("ep") else f"{value or UNKNOWN}ep"


def _dtype(value):
    """Convert a switch such as "true", or a precision such as "bf16-mixed" or "32"."""
    return "float32" if value.lower() in OFF else "bfloat16"


def _jitter(value):
    """Convert timm's strength of brightness, contrast and saturation; hue is not changed."""
    return value if "," in value or not value else f"{value},{value},{value},0"


def _last(value):
    """Return the last number: timm's --input-size is "3 224 224"."""
    return value.rpartition(",")[2]


def _variant(value):
    """Convert the name of a model to SIZE/PATCH: "vit_small" and "S" to "S/16"."""
    if value in variants.RESNETS or variants.PAPER_NAME.fullmatch(value):
        return value
    sizes = {size.lower(): size for size in reversed(variants.VARIANTS)} | variants.TIMM_SIZES
    pattern = rf"(?:.*[_-]|^|.*vit)({'|'.join(sizes)})(?:[_/-]?(?:patch|p)?(\d+))?(?:[_.-].*)?"
    match = re.fullmatch(pattern, value.lower())
    return f"{sizes[match[1]]}/{match[2] or 16}" if match else ""


def _distillation(value):
    """Convert DeiT's type; its "none" is the absence of a teacher."""
    return value if value in ("hard", "soft") else ""


CONVERSIONS = {
    "distillation": _distillation,
    "epochs": _epochs,
    "dtype": _dtype,
    "jitter": _jitter,
    "last": _last,
    "variant": _variant,
}
