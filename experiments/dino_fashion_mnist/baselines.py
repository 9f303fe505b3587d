"""What DINO's k-NN accuracy is to be measured by: that of raw pixels, and of the untrained network.

python -m experiments.dino_fashion_mnist.baselines --config=configs/dino_fashion_mnist.py \\
    --output=experiments/dino_fashion_mnist/results/baselines.json
"""

import json
from pathlib import Path

from absl import flags

from vit_jax import cli


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, ".json to write", required=True)


def main(flags):
    from vit_jax import evaluators
    from vit_jax.evaluators import knn
    from vit_jax.run import Run

    run = Run(flags.config)
    weights = run.weights(run.init())

    def network(split):
        return evaluators.features(run.model, flags.config, split, run.mesh)(weights)

    readings = {
        "pixels": lambda split: pixels(flags.config, split),
        "untrained": network,
    }
    scores = {}
    for name, read in readings.items():
        bank = read("train")
        scores[name] = {
            split: knn.read_out(bank, read(split), **flags.config.knn) for split in ("val", "test")
        }
        print(name, scores[name])
    command = "python -m experiments.dino_fashion_mnist.baselines --config=FILE --output=FILE"
    output = Path(flags.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"command": command, "scores": scores}, indent=2) + "\n")


def pixels(config, split):
    """{"pooled": the image as the model sees it, but flat, "label"} of every image of a split."""
    import numpy as np

    from vit_jax import augment, data

    source = data.make(config, config.data[split])
    _, view = augment.transforms(config)
    rows = [source[i] for i in range(len(source))]
    images = np.stack([view(row["image"]) for row in rows])
    images = (images / 255 - config.data.mean) / config.data.std
    labels = np.array([row["label"] for row in rows], np.int32)
    return {"pooled": images.reshape(len(images), -1).astype(np.float32), "label": labels}


if __name__ == "__main__":
    define_flags()
    cli.run(main)
