# %% [markdown]
# # Fine-tuning
#
# A model that knows the ten digits learns something else: whether a digit has a closed loop, as
# 0, 6, 8 and 9 have, from 200 images in a folder, at twice the resolution. It begins with the
# weights of the first run; its classifier is new, and its positions are resized. Beside it the same
# training from scratch.

# %%
# @title Settings
import os
import tempfile
from pathlib import Path

from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from vit_jax import cli, data, models, pretrained, variants
from vit_jax.analysis import weight_stats
from vit_jax.config import load_config
from vit_jax.figures import internals as drawn
from vit_jax.workdir import log

labeled = 200  # @param {type:"integer"}
steps = 100  # @param {type:"integer"}
learning_rate = 1e-3  # @param {type:"number"}

folder = Path(tempfile.mkdtemp(prefix="vit_jax-"))
os.environ["FOLDER"] = str(folder)

# %% [markdown]
# ## The first run
#
# All ten digits, 8 x 8 pixels, 4 x 4 patches.

# %% language="bash"
# python -m vit_jax.train --config=configs/digits.py --workdir=$FOLDER/digits \
#   --config.total_steps=20ep --config.log_every=100

# %% [markdown]
# ## Another task
#
# Images in folders, `SPLIT/CLASS/picture.png`: put your own here. The splits are those of the
# digits, so that no test image was seen before. What the first run has learned of the ten digits
# helps here; how much depends on how near the two tasks are.

# %%
config = cli.load_recipe("configs/digits.py")
for split in ("train", "val", "test"):
    source = data.make(config, split)
    for i in range(min(labeled, len(source)) if split == "train" else len(source)):
        kind = "loop" if source[i]["label"] in (0, 6, 8, 9) else "no loop"
        place = folder / "loops" / split / kind
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[i]["image"][..., 0]).save(place / f"{i}.png")
    count = {kind.name: len(list(kind.iterdir())) for kind in (folder / "loops" / split).iterdir()}
    print(split, count)

# %% [markdown]
# `config.model_init` is the workdir of a run, or a .safetensors file with weights of timm's or
# DINO's. What fits is taken over; what may be new is named, and anything else that does not fit is
# an error.

# %%
flags = os.environ["FLAGS"] = (
    f"--config=configs/digits.py --config.data.name=folder --config.data.dir={folder}/loops "
    f"--config.model.image=16 --config.total_steps={steps} --config.optim.warmup={steps // 10} "
    f"--config.eval_every={max(steps // 10, 1)} --config.checkpoint_every={steps} "
    "--config.batch_size=50 --config.eval_batch_size=90 --config.objective.ema=0.9"
)
os.environ["LR"] = str(learning_rate)
print(flags)

# %% language="bash"
# set -e
# python -m vit_jax.train $FLAGS --workdir=$FOLDER/tuned \
#   --config.model_init=$FOLDER/digits --config.optim.lr=$LR
# python -m vit_jax.train $FLAGS --workdir=$FOLDER/scratch

# %% [markdown]
# ## What it was worth
#
# The same images and steps for both; from scratch with the recipe's learning rate, which is larger.
# It is one seed, and the one from scratch has not learned all it can.

# %%
figure = Figure(figsize=(7, 3.2), layout="constrained")
axis = figure.subplots()
for name, color in (("tuned", "#0072B2"), ("scratch", "#D55E00")):
    rows = log.read_metrics(folder / name)
    test = rows[-1]["eval/test/acc1"]
    val = [(row["step"], row["eval/val/acc1"]) for row in rows if "eval/val/acc1" in row]
    axis.plot(*zip(*val, strict=True), color=color, marker="o", label=f"{name}: test {test:.1%}")
axis.set_xlabel("optimizer step")
axis.set_ylabel("accuracy on val")
axis.yaxis.set_major_formatter(PercentFormatter(1))
axis.grid(color="0.9")
axis.legend(frameon=False, loc="lower right")
display(figure)

# %% [markdown]
# ## What training began with
#
# The same from Python: the weights as they are taken over, and what stays new. 4 x 4 positions have
# become 8 x 8.

# %%
config = load_config(folder / "tuned")
model = models.build(variants.from_config(config.model, 2))
weights, fresh = pretrained.init_params(folder / "digits", model.module, config.model)
print("new:", ", ".join(fresh))
print("positions:", weights["pos_embed"].shape)
first = pretrained.load(folder / "digits")
display(drawn.positions(weight_stats.position_similarity(weight_stats.positions(first))))
resized = weights["pos_embed"].reshape(8, 8, -1)
display(drawn.positions(weight_stats.position_similarity(resized)))
