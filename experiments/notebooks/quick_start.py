# %% [markdown]
# # Quick start
#
# Train a Vision Transformer on the digits dataset of scikit-learn (1,797 images), interrupt and
# resume training, plot the curves, and evaluate the model on the test split. Two CPU cores are
# enough, and nothing is downloaded.

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
# ## Train, interrupt, resume
#
# `configs/digits.py` is the recipe. `--config.KEY=VALUE` overrides any of its keys, which
# `vit_jax/config.py` documents. Here the training process receives SIGTERM after 200 steps, as on a
# preempted machine. It saves a checkpoint and exits with code 75.

# %%
with subprocess.Popen(shlex.split(train), stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout:
        print(line, end="")
        if line.startswith("step 200/"):
            process.terminate()
print("exit code", process.returncode)

# %% [markdown]
# The same command resumes from the checkpoint. The result is bit-exact, as if training had not been
# interrupted. At the end, the checkpoint with the best validation accuracy is evaluated on the test
# split.

# %% language="bash"
# $TRAIN

# %% [markdown]
# ## Training curves
#
# The workdir contains the config, the checkpoints, a record of every start, and `metrics.jsonl`,
# with one JSON object per line. The interruption is not visible in the curves.

# %%
rows = log.read_metrics(workdir)
display(rows[0])
display(curves(rows))

# %% [markdown]
# ## Predictions
#
# Load the trained model in Python and run it on the preprocessed test images. The figure shows the
# top 5 classes of nine test images, misclassified images first.

# %%
model = inference.load(workdir)
source = data.make(model.config, model.config.data.test)
views = [model.view(source[i]["image"]) for i in range(len(source))]
labels = np.array([source[i]["label"] for i in range(len(source))])

logits = model.run(views, batch_size=360)["logits"]
probabilities = np.asarray(jax.nn.softmax(logits))
wrong = probabilities.argmax(1) != labels
print(f"{wrong.sum()} of {len(labels)} test images are misclassified")

# %%
names = model.class_names
selected = np.argsort(~wrong, kind="stable")[:9]
top5 = (-probabilities).argsort(1)[:, :5]
display(
    predictions(
        [views[i] for i in selected],
        [[(names[k], probabilities[i, k]) for k in top5[i]] for i in selected],
        titles=[f"test:{i}" for i in selected],
        labels=[names[labels[i]] for i in selected],
    )
)

# %% [markdown]
# The same from the command line, which also accepts image files:

# %% language="bash"
# python -m vit_jax.tools.predict --workdir=$WORKDIR test:0 test:1

# %% [markdown]
# ## Evaluation
#
# The command prints one JSON line. `--evaluator=knn` and `--evaluator=linear_probe` evaluate the
# features instead of the classifier; `--raw` uses the trained weights instead of their moving
# average.

# %% language="bash"
# set -e
# python -m vit_jax.tools.evaluate --workdir=$WORKDIR --split=test
# python -m vit_jax.tools.evaluate --workdir=$WORKDIR --split=test --evaluator=knn
