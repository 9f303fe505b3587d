"""Write weights for other codebases: timm, transformers, AugReg, or as one file of this project.

python -m vit_jax.tools.convert --weights=runs/digits --to=timm --output=digits_timm
python -m vit_jax.tools.convert --weights=FILE.npz --to=hf --output=DIR

--to=timm writes model.safetensors and config.json to a directory, or FILE.safetensors and the
config.json beside it; --to=hf a directory for from_pretrained(); --to=augreg a .npz file; and
--to=vit_jax one safetensors file with the paths of our parameters. Of a run, the weights are their
EMA or DINO's teacher; --raw selects the trained parameters. A layout that cannot express the model
is refused, and nothing is written.

--push=ORGANIZATION/NAME also writes a model card, README.md, and uploads the directory to the
Hugging Face Hub.
"""

import shlex
import sys

from absl import flags

from vit_jax import cli
from vit_jax.config import defaults, flat, objective
from vit_jax.errors import UserError, printable
from vit_jax.pretrained import hub, writing
from vit_jax.tools import model_flags

LIBRARIES = {"timm": "timm", "hf": "transformers"}  # names of the Hugging Face Hub


def define_flags():
    model_flags.define_flags(against=False)
    flags.DEFINE_enum("to", None, writing.LAYOUTS, "layout to write", required=True)
    flags.DEFINE_string("output", None, "file or directory to write", required=True)
    flags.DEFINE_string(
        "push", None, "repository of the Hugging Face Hub to upload to: ORGANIZATION/NAME"
    )


def main(flags):
    model_flags.check_flags(flags)
    output = writing.check_output(flags.to, flags.output)
    if flags.push:
        if output.suffix:
            raise UserError("--push uploads a directory; pass --to=timm or --to=hf and a directory")
        hub.check_push(flags.push)
    (model,) = model_flags.load(flags)
    readme = card(model, flags.to, flags.push, sys.argv[1:]) if flags.push else None
    for path in convert(model, flags.to, output, readme=readme):
        print(printable(path))
    if flags.push:
        print(hub.push(flags.push, output))


def convert(model, to, output, *, readme=None):
    """Write the weights of a model.

    Args:
      model: an `inference.LoadedModel`.
      to: one of `writing.LAYOUTS`.
      output: file or directory that does not exist.
      readme: text of a README.md in the directory, or None.

    Returns:
      The paths of the files that were written.

    Raises:
      UserError: if the layout cannot express the model, or `output` exists.
    """
    import jax

    output = writing.check_output(to, output)
    names = model.class_names
    numbered = all(name == f"class {i}" for i, name in enumerate(names))
    view = {
        "mean": model.mean,
        "std": model.std,
        "crop": model.crop,
        "interpolation": getattr(model, "interpolation", "bicubic"),
        "crop_mode": getattr(model, "crop_mode", "center"),
        "class_names": None if numbered or not model.model.module.config.num_classes else names,
    }
    params = jax.device_get(model.params)
    return writing.write(to, output, model.model.module.config, params, view, readme)


def card(model, to, repository, args):
    """Return the model card for the Hugging Face Hub, in Markdown.

    Args:
      model: an `inference.LoadedModel`.
      to: layout of the weights, "timm" or "hf".
      repository: ORGANIZATION/NAME.
      args: arguments of the convert command.
    """
    config = model.model.module.config
    library = LIBRARIES[to]
    kind = "ResNet" if model.is_cnn else "Vision Transformer"
    lines = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: image-{'classification' if config.num_classes else 'feature-extraction'}",
        "tags: [vit_jax]",
        "---",
        f"# {repository.partition('/')[2]}",
        "",
        f"A {kind} with {model.parameters:,} parameters for images of {config.image} x "
        f"{config.image} pixels, converted by vit_jax from {printable(model.name)}.",
        "",
        "```python",
        *_example(to, repository, config),
        "```",
        "",
        f"Images: {view_text(model)}.",
    ]
    if model.config is not None:
        lines += ["", "## Training", "", *_table(_recipe(model))]
        lines += ["", "## Results", "", *_results(model)]
    command = shlex.join(["python", "-m", "vit_jax.tools.convert", *args])
    lines += ["", "## Command", "", "```", command, "```"]
    return "\n".join(lines) + "\n"


def view_text(model):
    """Describe the preprocessing of a model."""
    mean, std = (", ".join(f"{x:g}" for x in values) for values in (model.mean, model.std))
    return f"crop ratio {model.crop:g}, mean ({mean}), standard deviation ({std})"


def _example(to, repository, config):
    """Return lines of Python that load the weights."""
    if to == "timm":
        source = f'"hf-hub:{repository}", pretrained=True'
        return ["import timm", "", f"model = timm.create_model({source}).eval()"]
    kind = "AutoModelForImageClassification" if config.num_classes else "AutoModel"
    load = f'model = {kind}.from_pretrained("{repository}")'
    return [f"from transformers import {kind}", "", load]


def _recipe(model):
    """Return the keys of a run's config that differ from their defaults, {key: value}."""
    base = defaults()
    base.update(objective=objective(model.config.objective.name))
    default = flat(base)
    values = flat(model.config)
    del values["data.class_names"]
    return {key: value for key, value in values.items() if default.get(key) != value}


def _results(model):
    """Return lines with the latest value of each evaluation metric in metrics.jsonl."""
    latest = {}
    for row in model.metrics:
        for name, value in row.items():
            counts = name.endswith(("/images", "/step"))
            if name.startswith("eval/") and not counts and value is not None:
                latest[name] = f"{value:.4f} at step {row['step']:,}"
    if not latest:
        return ["Not measured."]
    which = [f"The weights are those of step {model.step:,}.", ""]
    return which + _table(latest)


def _table(rows):
    """Return the lines of a Markdown table of two columns."""
    cells = [(str(key), printable(str(value)).replace("|", "\\|")) for key, value in rows.items()]
    return ["| | |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in cells)]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
