# %% [markdown]
# # Quick start
#
# Train a Vision Transformer on the digits dataset of scikit-learn (1,797 images), interrupt and
# resume training, plot the curves, and evaluate the model on the test split. Two CPU cores are
# enough, and nothing is downloaded.

# %%
# @title Settings
import os
import signal
import tempfile
import threading
import time

import jax
import numpy as np
from IPython.display import display

from vit_jax import cli, data, inference
from vit_jax.devices.distributed import StopSignal
from vit_jax.errors import Preempted
from vit_jax.figures.curves import curves
from vit_jax.figures.predictions import predictions
from vit_jax.tools.evaluate import evaluate
from vit_jax.train import train
from vit_jax.workdir import log

epochs = 30  # @param {type:"integer"}
learning_rate = 5e-3  # @param {type:"number"}
seed = 0  # @param {type:"integer"}

workdir = tempfile.mkdtemp(prefix="vit_jax-")
overrides = {
    "total_steps": f"{epochs}ep",
    "optim.lr": f"{learning_rate}",
    "seed": f"{seed}",
    "log_every": "20",
    "eval_every": "5ep",
}
config = cli.build_config("configs/digits.py", overrides.items())

# %% [markdown]
# ## Train, interrupt, resume
#
# `configs/digits.py` is the recipe. The overrides may change any of its keys, which
# `vit_jax/config.py` documents; on the command line they are
# `python -m vit_jax.train --config=configs/digits.py --workdir=DIR --config.total_steps=30ep ...`.
# Training runs in this kernel, as a TPU belongs to one process. Here it is interrupted after 200
# steps, as by the stop button of the notebook or on a preempted machine, and saves a checkpoint.

# %%
trained = threading.Event()


def interrupt_after(step):
    while not any(row["step"] >= step for row in log.read_metrics(workdir)):
        time.sleep(0.1)
    if not trained.is_set():
        os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt_after, args=[200], daemon=True).start()
with StopSignal(ends_process=False) as stop:
    try:
        train(config, workdir, stop)
    except Preempted as message:
        print(message)
    trained.set()

# %% [markdown]
# The same call resumes from the checkpoint. The result is bit-exact, as if training had not been
# interrupted. At the end, the checkpoint with the best validation accuracy is evaluated on the test
# split.

# %%
with StopSignal(ends_process=False) as stop:
    train(config, workdir, stop)

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
# `python -m vit_jax.tools.predict --workdir=DIR test:0 image.png` prints them in a terminal.
#
# ## Evaluation
#
# The evaluators `knn` and `linear_probe` evaluate the features instead of the classifier. In a
# terminal: `python -m vit_jax.tools.evaluate --workdir=DIR --split=test --evaluator=knn`.

# %%
for evaluator in ("accuracy", "knn"):
    print(evaluate(model, "test", evaluator=evaluator))
