# %% [markdown]
# # Model size against accuracy
#
# Train several model sizes with one recipe and several seeds, and tabulate accuracy against size.
# This notebook uses small models on the digits dataset of scikit-learn. With
# `--config=configs/deit.py`, the same command trains the DeiT sizes on ImageNet.

# %%
# @title Settings
import os
import tempfile
from pathlib import Path

from IPython.display import Image, Markdown, display

from vit_jax import variants
from vit_jax.flops import count_flops, count_params

epochs = 12  # @param {type:"integer"}
seeds = 2  # @param {type:"slider", min:1, max:5}
jobs = 1  # @param {type:"slider", min:1, max:8}

folder = Path(tempfile.mkdtemp(prefix="vit_jax-"))
os.environ.update(FOLDER=str(folder), SEEDS=str(seeds), JOBS=str(jobs))

# %% [markdown]
# ## Sizes
#
# A model name is SIZE/PATCH. Parameters and FLOPs are computed without creating the model.

# %%
for name in ("pico/2", "nano/2", "micro/2", "Ti/16", "S/16", "B/16", "L/16", "H/14"):
    image, channels, classes = (8, 1, 10) if name.endswith("/2") else (224, 3, 1000)
    model = variants.parse(name, image=image, channels=channels, num_classes=classes)
    parameters, gflops = count_params(model), count_flops(model) / 1e9
    print(f"{name:8} {model.depth:2} layers  width {model.width:4}", end="  ")
    print(f"{parameters:12,} parameters  {gflops:.3g} GFLOPs")

# %% [markdown]
# ## The recipe
#
# A recipe is a Python file. This recipe takes a size as its argument and lists the sizes in
# `SIZES`: three ViTs and a ResNet with the same training settings.

# %%
recipe = f"""
from configs import digits

SIZES = {{"pico": "pico/2", "nano": "nano/2", "micro": "micro/2", "resnet8": "resnet8"}}


def get_config(size="nano"):
    c = digits.get_config()
    c.model.variant = SIZES[size]
    if size.startswith("resnet"):  # the recipe sets these keys for a ViT; restore the defaults
        c.model.pool = "cls"
        c.model.init = "deit"
    c.total_steps = c.eval_every = c.checkpoint_every = "{epochs}ep"
    c.optim.warmup = "1ep"
    c.optim.lr = 3e-3
    c.optim.clip = 1.0
    c.objective.ema = 0.9
    return c
"""
(folder / "recipes").mkdir()
(folder / "recipes" / "ladder.py").write_text(recipe)
print(recipe)

# %% [markdown]
# Each run is an ordinary training run in its own workdir and process. Finished runs are skipped and
# interrupted runs are resumed. `jobs` of them run at a time; a TPU allows one.

# %% language="bash"
# python -m experiments.size_vs_accuracy --config=$FOLDER/recipes/ladder.py --seeds=$SEEDS \
#   --jobs=$JOBS --output=$FOLDER/runs

# %% [markdown]
# ## The table
#
# `runs.jsonl` has one row per run, with its command and code revision; `sizes.csv` has timm's
# column names. Error bars show the range over the seeds. Training is short and the images are
# small, so the ranking of these sizes may not hold on larger datasets.

# %%
results = folder / "runs" / "results"
display(Markdown((results / "sizes.md").read_text()))
display(Image(results / "sizes.png", width=800))
display(Image(results / "accuracy.png", width=800))
