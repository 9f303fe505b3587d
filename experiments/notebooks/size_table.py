# %% [markdown]
# # Model size against accuracy
#
# One recipe, several sizes, several seeds: what each is worth, as a table and as figures. This is a
# small ladder on scikit-learn's digits; the same command makes the table of DeiT's sizes on
# ImageNet.

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
jobs = 2  # @param {type:"slider", min:1, max:8}

folder = Path(tempfile.mkdtemp(prefix="vit_jax-"))
os.environ.update(FOLDER=str(folder), SEEDS=str(seeds), JOBS=str(jobs))

# %% [markdown]
# ## Sizes
#
# A size is a row of a table, and a model's name is size/patch. Parameters and FLOPs are counted
# without making the model.

# %%
for name in ("pico/2", "nano/2", "micro/2", "Ti/16", "S/16", "B/16", "L/16", "H/14"):
    image, channels, classes = (8, 1, 10) if name.endswith("/2") else (224, 3, 1000)
    model = variants.parse(name, image=image, channels=channels, num_classes=classes)
    parameters, gflops = count_params(model), count_flops(model) / 1e9
    print(f"{name:8} {model.depth:2} layers  width {model.width:4}", end="  ")
    print(f"{parameters:12,} parameters  {gflops:.3g} GFLOPs")

# %% [markdown]
# ## A ladder
#
# A recipe is a Python file. This one takes a size as its argument and lists them as `SIZES`: three
# ViTs and a ResNet, all trained alike.

# %%
recipe = f"""
from configs import digits

SIZES = {{"pico": "pico/2", "nano": "nano/2", "micro": "micro/2", "resnet8": "resnet8"}}


def get_config(size="nano"):
    c = digits.get_config()
    c.model.variant = SIZES[size]
    if size.startswith("resnet"):  # these are a ViT's
        c.model.pool, c.model.init = "cls", "deit"
    c.total_steps = c.eval_every = c.checkpoint_every = "{epochs}ep"
    c.optim.warmup, c.optim.lr, c.optim.clip = "1ep", 3e-3, 1.0
    c.objective.ema = 0.9
    return c
"""
(folder / "recipes").mkdir()
(folder / "recipes" / "ladder.py").write_text(recipe)
print(recipe)

# %% [markdown]
# Every run is an ordinary run in a folder of its own; what is done is not done again, and what was
# stopped goes on.

# %% language="bash"
# python -m experiments.size_vs_accuracy --config=$FOLDER/recipes/ladder.py --seeds=$SEEDS \
#   --jobs=$JOBS --output=$FOLDER/runs

# %% [markdown]
# ## The table
#
# `runs.jsonl` has a line a run, with the command and the code that made it; `sizes.csv` has timm's
# column names. A bar through a point goes from the worst to the best seed. Training is short here
# and the digits are small, so that the order of these sizes says nothing of larger data.

# %%
results = folder / "runs" / "results"
display(Markdown((results / "sizes.md").read_text()))
display(Image(results / "sizes.png", width=800))
display(Image(results / "accuracy.png", width=800))
