"""Test the plan of experiments.gpu_suite.trainings; the trainings need a GPU."""

from types import SimpleNamespace

import pytest

from experiments.gpu_suite import trainings
from experiments.size_vs_accuracy import table

FLAGS = dict(
    cifar10="cifar10",
    imagenette="imagenette/160px-v2",
    seed=1,
    output="runs/gpu_suite",
    epochs=None,
    workers=7,
)


@pytest.mark.parametrize("name", trainings.RUNS)
def test_runs_have_valid_configs(name, tmp_path):
    job = trainings.make_job(name, SimpleNamespace(data_dir=str(tmp_path), **FLAGS))
    recipe, _ = trainings.RUNS[name]
    assert job.command[3:5] == [f"--config={recipe}", f"--workdir=runs/gpu_suite/{name}-1"]
    expected = "imagenette/160px-v2" if name == "dino_imagenette" else "cifar10"
    assert job.config.data.dataset == expected and job.config.seed == 1
    assert job.config.model.dtype == "bfloat16" and job.config.data.workers == 7


def test_rows_of_other_lengths_do_not_count_as_finished(tmp_path):
    def job(**flags):
        flags = FLAGS | {"data_dir": str(tmp_path)} | flags
        return trainings.make_job("vit_lite_7", SimpleNamespace(**flags))

    rows = [job().changes | {"config": table.changed_keys(job().config)}]
    assert table.has(rows, job()) and table.has(rows, job(workers=2))
    assert not table.has(rows, job(epochs=20)) and not table.has(rows, job(seed=2))
