# %% [markdown]
# # Fine-tuning
#
# Pretrain a model on the ten digits, then fine-tune it on another task with 200 images at twice the
# resolution: whether a digit has a closed loop, as 0, 6, 8 and 9 have. Fine-tuning starts from the
# weights of the first run, with a new classifier and resized position embeddings. Training from
# scratch is the baseline.

# %%
# @title Settings
import tempfile
from pathlib import Path

from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from vit_jax import cli, data, models, pretrained, variants
from vit_jax.analysis import weight_stats
from vit_jax.config import load_config
from vit_jax.figures import internals
from vit_jax.train import train
from vit_jax.workdir import log

labeled = 200  # @param {type:"integer"}
steps = 100  # @param {type:"integer"}
learning_rate = 1e-3  # @param {type:"number"}

folder = Path(tempfile.mkdtemp(prefix="vit_jax-"))

# %% [markdown]
# ## Pretraining
#
# All ten digits, with images of 8 x 8 pixels and 4 x 4 patches.

# %%
overrides = {"total_steps": "20ep", "log_every": "100"}
train(cli.build_config("configs/digits.py", overrides.items()), folder / "digits")

# %% [markdown]
# ## The new task
#
# The dataset is a directory of images, `SPLIT/CLASS/image.png`; replace it with your own images.
# The splits are those of the digits, so pretraining did not use any of the test images. How much
# pretraining helps depends on how similar the two tasks are.

# %%
config = cli.load_recipe("configs/digits.py")
for split in ("train", "val", "test"):
    source = data.make(config, split)
    for i in range(min(labeled, len(source)) if split == "train" else len(source)):
        class_name = "loop" if source[i]["label"] in (0, 6, 8, 9) else "no loop"
        class_folder = folder / "loops" / split / class_name
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[i]["image"][..., 0]).save(class_folder / f"{i}.png")
    counts = {path.name: len(list(path.iterdir())) for path in (folder / "loops" / split).iterdir()}
    print(split, counts)

# %% [markdown]
# `config.model_init` is the workdir of a run, or a .safetensors file with weights of timm or DINO.
# Newly initialized parameters, such as those of the classifier, are reported. Any other mismatch is
# an error.

# %%
overrides = {
    "data.name": "folder",
    "data.dir": f"{folder}/loops",
    "model.image": "16",
    "total_steps": f"{steps}",
    "optim.warmup": f"{steps // 10}",
    "eval_every": f"{max(steps // 10, 1)}",
    "checkpoint_every": f"{steps}",
    "batch_size": "50",
    "eval_batch_size": "90",
    "objective.ema": "0.9",
}
start = {"model_init": f"{folder}/digits", "optim.lr": f"{learning_rate}"}
train(cli.build_config("configs/digits.py", (overrides | start).items()), folder / "tuned")
train(cli.build_config("configs/digits.py", overrides.items()), folder / "scratch")

# %% [markdown]
# ## Comparison
#
# Both runs use the same images and the same number of steps. Training from scratch uses the larger
# learning rate of the recipe. Each run uses one seed, and training from scratch has not converged.

# %%
figure = Figure(figsize=(7, 3.2), layout="constrained")
axis = figure.subplots()
for name, color in (("tuned", "#0072B2"), ("scratch", "#D55E00")):
    rows = log.read_metrics(folder / name)
    test = rows[-1]["eval/test/acc1"]
    val = [(row["step"], row["eval/val/acc1"]) for row in rows if "eval/val/acc1" in row]
    axis.plot(*zip(*val, strict=True), color=color, marker="o", label=f"{name}: test {test:.1%}")
axis.set_xlabel("optimizer step")
axis.set_ylabel("validation accuracy")
axis.yaxis.set_major_formatter(PercentFormatter(1))
axis.grid(color="0.9")
axis.legend(frameon=False, loc="lower right")
display(figure)

# %% [markdown]
# ## Initial weights
#
# The same initialization in Python: the loaded weights, and the names of the newly initialized
# parameters. The position embeddings are resized from 4 x 4 to 8 x 8.

# %%
config = load_config(folder / "tuned")
model = models.build(variants.from_config(config.model, 2))
weights, new_names = pretrained.init_params(folder / "digits", model.module, config.model)
print("newly initialized:", ", ".join(new_names))
print("position embeddings:", weights["pos_embed"].shape)
pretrained_model = pretrained.load(folder / "digits")
positions = weight_stats.positions(pretrained_model)
display(internals.positions(weight_stats.position_similarity(positions)))
resized = weights["pos_embed"].reshape(8, 8, -1)
display(internals.positions(weight_stats.position_similarity(resized)))
