"""FAMILY: loggers of a run, besides metrics.jsonl. Each logger is a module of this package.

A member NAME.py defines `make(workdir, config, start) -> logger`:

* `workdir`: `pathlib.Path` of the run, or `epath.Path` in a bucket. The directory exists.
* `config`: the ConfigDict of the run.
* `start`: step of the restored checkpoint; 0: training starts at random or pretrained weights.

`make` is called in one process, and raises UserError if the logger cannot be used. A member may
also define `check()`, which raises UserError if a package is missing, before anything is written.
The logger is an object with the methods

* `write(step, numbers)`: log {"train/loss": 0.5, ...} after `step` optimizer steps.
* `image(step, tag, array)`: log an image, uint8 [h, w, c] with 1, 3 or 4 channels.
* `hparams(values, metrics)`: log the flat config and the final metrics, at the end of training.
* `flush()`: store what was logged; called before a checkpoint is saved.
* `close()`

After an exception of a method, a warning is printed and the logger is not used any more: a logger
never stops training. Its methods must not block for long.
"""
