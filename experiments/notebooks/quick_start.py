# %% [markdown]
# # Quick start
#
# A Vision Transformer on scikit-learn's 1,797 real digits: train it, stop it half-way and go on,
# look at its curves and at what it says of digits that it never saw, and score it. Nothing is
# downloaded, and two CPU cores are enough.

# %%
# @title Settings
import os
import shlex
import subprocess
import tempfile

import jax
import numpy as np
from IPython.display import display

from vit_jax import data, inference
from vit_jax.figures.curves import curves
from vit_jax.figures.predictions import predictions
from vit_jax.workdir import log

epochs = 30  # @param {type:"integer"}
learning_rate = 5e-3  # @param {type:"number"}
seed = 0  # @param {type:"integer"}

workdir = os.environ["WORKDIR"] = tempfile.mkdtemp(prefix="vit_jax-")
train = os.environ["TRAIN"] = (
    f"python -m vit_jax.train --config=configs/digits.py --workdir={workdir} "
    f"--config.total_steps={epochs}ep --config.optim.lr={learning_rate} --config.seed={seed} "
    "--config.log_every=20 --config.eval_every=5ep"
)
print(train)

# %% [markdown]
# ## Train, stop, go on
#
# `configs/digits.py` is the recipe, and `--config.KEY=VALUE` overrides any of its keys;
# `vit_jax/config.py` names them all. Here the command is sent SIGTERM after 200 steps, as a machine
# does that is about to be taken away: it saves and ends with exit code 75.

# %%
with subprocess.Popen(shlex.split(train), stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout:
        print(line, end="")
        if line.startswith("step 200/"):
            process.terminate()
print("exit code", process.returncode)

# %% [markdown]
# The same command goes on where it was, bit for bit as if it had never stopped. What it scores at
# the end, on the test split, is the checkpoint that was best on the validation split.

# %% language="bash"
# $TRAIN

# %% [markdown]
# ## The curves
#
# A workdir holds `metrics.jsonl`, a JSON object a line, beside the config, the checkpoints and a
# record of every start. The stop leaves no trace in the curves.

# %%
rows = log.read_metrics(workdir)
display(rows[0])
display(curves(rows))

# %% [markdown]
# ## What it says of single images
#
# From Python: a run's model with its weights, and the images as it is evaluated on them. Shown are
# the five likeliest classes of some test images, first those that it gets wrong.

# %%
model = inference.load(workdir)
source = data.make(model.config, model.config.data.test)
views = [model.view(source[i]["image"]) for i in range(len(source))]
labels = np.array([source[i]["label"] for i in range(len(source))])

logits = model.run(views, batch_size=360)["logits"]
probabilities = np.asarray(jax.nn.softmax(logits))
wrong = probabilities.argmax(1) != labels
print(f"{wrong.sum()} of {len(labels)} are wrong")

# %%
names = model.class_names
shown = np.argsort(~wrong, kind="stable")[:9]
order = (-probabilities).argsort(1)[:, :5]
display(
    predictions(
        [views[i] for i in shown],
        [[(names[k], probabilities[i, k]) for k in order[i]] for i in shown],
        titles=[f"test:{i}" for i in shown],
        labels=[names[labels[i]] for i in shown],
    )
)

# %% [markdown]
# The same as a command, which takes any picture file too:

# %% language="bash"
# python -m vit_jax.tools.predict --workdir=$WORKDIR test:0 test:1

# %% [markdown]
# ## Score it
#
# One JSON line. `--evaluator=knn` and `--evaluator=linear_probe` read out the features instead of
# the classifier; `--raw` takes the trained weights instead of their moving average.

# %% language="bash"
# set -e
# python -m vit_jax.tools.evaluate --workdir=$WORKDIR --split=test
# python -m vit_jax.tools.evaluate --workdir=$WORKDIR --split=test --evaluator=knn
