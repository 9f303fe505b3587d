"""Write weights in the layouts of other codebases. Imports JAX only to compute fixed positions."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import _own_card, _write_hf, _write_timm, augreg
from vit_jax.pretrained._describe import determine
from vit_jax.pretrained._match import resolve
from vit_jax.variants import ViTConfig

LAYOUTS = ("timm", "hf", "augreg", "vit_jax")
RESNET_LAYOUTS = ("timm", "vit_jax")
DIRECTORIES = ("timm", "hf")  # layouts that are written as a directory
WEIGHTS = "model.safetensors"
ENDINGS = {"timm": ".safetensors", "augreg": ".npz", "vit_jax": ".safetensors"}  # of a file


def check_output(layout, output):
    """Check --output; imports no JAX.

    Args:
      layout: one of `LAYOUTS`.
      output: path of a file or directory.

    Returns:
      The path; it is a directory if it has no suffix.

    Raises:
      UserError: if the layout is not written to such a path, or it exists.
    """
    output = Path(output).expanduser()
    ending = ENDINGS.get(layout)
    if output.suffix not in (ending, "" if layout in DIRECTORIES else ending):
        kinds = [f"a file *{ending}"] if ending else []
        kinds += ["a directory"] if layout in DIRECTORIES else []
        raise UserError(f"--output={output}: --to={layout} writes {' or '.join(kinds)}")
    if not output.parent.is_dir():
        raise UserError(f"--output={output} must be in an existing directory")
    beside = [output.with_name("config.json")] if layout == "timm" and output.suffix else []
    for path in (output, *beside):
        if path.exists():
            raise UserError(f"{path} already exists; remove it or pass another --output")
    return output


def write(layout, output, config, params, view, readme=None):
    """Write weights and, for timm and transformers, a config.json next to them, atomically.

    The files are read back before they are moved to `output`, so that what a layout cannot express
    is an error, and leaves nothing.

    Args:
      layout: one of `LAYOUTS`.
      output: as returned by `check_output`.
      config: the `ViTConfig` or `ResNetConfig`.
      params: nested dict of arrays.
      view: as in `_own_card.group`.
      readme: text of a README.md in a directory, or None.

    Returns:
      The paths of the files.

    Raises:
      UserError: if the layout cannot express the model.
    """
    is_vit = isinstance(config, ViTConfig)
    if not is_vit and layout not in RESNET_LAYOUTS:
        choices = " or ".join(f"--to={name}" for name in RESNET_LAYOUTS)
        raise UserError(f"--to={layout} cannot express a ResNet; pass {choices}")
    if any(isinstance(getattr(config, key, 0), tuple) for key in ("image", "patch")):
        raise UserError("a model of images or patches that are not square cannot be converted")
    flat = _flatten(params)
    if is_vit and layout in DIRECTORIES and config.pos_embed == "sincos2d":
        config, flat = _with_table(config, flat)
    if layout == "hf":
        config = dataclasses.replace(config, pos_resize=_hf_resize(config))
    metadata = {"format": "pt"}
    files = {}
    if layout == "timm":
        tensors, files = _write_timm.files(config, flat, view)
    elif layout == "hf":
        tensors, files = _write_hf.files(config, flat, view)
    elif layout == "augreg":
        published = config.pool == "cls" and config.pos_embed == "learned"
        tensors = augreg.tensors(flat, config.num_heads, published)
    else:
        tensors = {"/".join(path): x for path, x in flat.items()}
        metadata[_own_card.KEY] = json.dumps(_own_card.group(config, view))
    name = output.name if output.suffix else WEIGHTS
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        for other, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (temporary / other).write_text(text + "\n", encoding="utf-8")
        if readme is not None:
            (temporary / "README.md").write_text(readme, encoding="utf-8")
        _save(temporary / name, tensors, metadata)
        _check(layout, temporary / name, config)
        if not output.suffix:
            os.rename(temporary, output)
            return [output / x for x in sorted(os.listdir(output))]
        for other in (*files, name):
            os.replace(temporary / other, output.with_name(other))
        return [output.with_name(x) for x in (name, *files)]
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flatten(params, path=()):
    """Return nested dicts as {path: numpy array}."""
    if not isinstance(params, dict):
        return {path: np.asarray(params)}
    return {k: x for name, y in params.items() for k, x in _flatten(y, (*path, name)).items()}


def _with_table(config, params):
    """Replace positions that are computed by a table, with zeros for the tokens that have none."""
    from vit_jax.layers.patch_embed import sincos2d

    table = np.asarray(sincos2d(config.grid, config.width), np.float32)
    table = np.concatenate([np.zeros((1, config.prefix, config.width), np.float32), table], axis=1)
    changes = dict(pos_embed="learned", no_embed_class=False, embed_reg=True)
    return dataclasses.replace(config, **changes), params | {("pos_embed",): table}


def _hf_resize(config):
    """Return how transformers resizes positions: DINOv2's two kinds differ (see `dinov2`)."""
    if config.layer_scale_init is None or config.rope != "none":
        return config.pos_resize
    return "timm" if config.reg_tokens else "dino"


def _save(path, tensors, metadata):
    """Write a .safetensors or .npz file."""
    tensors = {name: np.ascontiguousarray(x) if x.ndim else x for name, x in tensors.items()}
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        from safetensors.numpy import save_file

        save_file(tensors, path, metadata)


def _check(layout, path, config):
    """Raise UserError unless a file that was written is read as the model that it is of."""
    wanted = _own_card.stated(config)
    try:
        found, _ = resolve(determine(path), None, {})
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"--to={layout} cannot express this model: {reason}") from None
    found = _own_card.stated(found)
    ignored = {"layer_scale_init"} if wanted.get("layer_scale_init") is not None else set()
    # A .npz file has no place for them; they do not change what the weights compute at their size.
    ignored |= {"image", "pos_resize"} if layout == "augreg" else set()
    different = [key for key in wanted if found[key] != wanted[key] and key not in ignored]
    if different:
        ours = ", ".join(f"{key} = {wanted[key]!r}" for key in different)
        raise UserError(f"--to={layout} cannot express {ours}; pass --to=vit_jax")
