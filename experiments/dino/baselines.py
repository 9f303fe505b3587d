"""Baselines for DINO's k-NN accuracy: raw pixels and the untrained network.

python -m experiments.dino.baselines --config=configs/dino_fashion_mnist.py \\
    --output=experiments/dino/fashion_mnist/results/baselines.json
"""

import json
from pathlib import Path

from absl import flags

from vit_jax import cli


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, ".json file to write", required=True)


def main(flags):
    from vit_jax import evaluators
    from vit_jax.evaluators import knn
    from vit_jax.run import Run

    run = Run(flags.config)
    weights = run.weights(run.init())

    def network(split):
        return evaluators.features(run.model, flags.config, split, run.mesh)(weights)

    extractors = {
        "pixels": lambda split: pixels(flags.config, split),
        "untrained": network,
    }
    scores = {}
    for name, extract in extractors.items():
        bank = extract("train")
        scores[name] = {
            split: knn.read_out(bank, extract(split), **flags.config.knn)
            for split in ("val", "test")
        }
        print(name, scores[name])
    command = "python -m experiments.dino.baselines --config=FILE --output=FILE"
    output = Path(flags.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"command": command, "scores": scores}, indent=2) + "\n")


def pixels(config, split):
    """Return the flattened pixels of a split as features.

    Args:
        config: the config of a run.
        split: a key of config.data: "train", "val" or "test".

    Returns:
        {"pooled": float32 [n, h * w * c], preprocessed as for evaluation; "label": int32 [n]}.
    """
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
