"""Test the plan of experiments.gpu_suite.trainings; the trainings need a GPU."""

from types import SimpleNamespace

import pytest

from experiments.gpu_suite import trainings
from vit_jax.errors import UserError

FLAGS = dict(cifar10="cifar10", imagenette="imagenette/160px-v2", seed=1, output="runs/gpu_suite")


@pytest.mark.parametrize("name", [name for name in trainings.RUNS if name != "dino_imagenette"])
def test_runs_have_valid_configs(name, tmp_path):
    job = trainings.make_job(name, SimpleNamespace(data_dir=str(tmp_path), **FLAGS))
    recipe, _ = trainings.RUNS[name]
    assert job.command[3:5] == [f"--config={recipe}", f"--workdir=runs/gpu_suite/{name}-1"]
    assert job.config.data.dataset == "cifar10" and job.config.seed == 1
    assert job.config.model.dtype == "bfloat16"


def test_images_that_are_missing_are_reported_before_training(tmp_path):
    with pytest.raises(UserError, match="imagenette"):
        trainings.make_job("dino_imagenette", SimpleNamespace(data_dir=str(tmp_path), **FLAGS))
