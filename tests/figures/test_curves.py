"""Tests of training curves."""

import numpy as np
import pytest

from vit_jax.figures import curves


def test_curves_draw_each_metric_in_its_panel():
    rows = [{"step": t, "train/loss": 1 / t, "train/acc1": 0.1, "sched/lr": 0.5} for t in (1, 2, 4)]
    rows[1]["train/loss"] = None  # as logged for a loss that is not finite
    rows += [{"step": 2, "eval/val/acc1": 0.25}, {"step": 4, "eval/val/acc1": 0.5}]
    rows += [{"step": 4, "eval/test/acc1": 0.375}]
    loss, accuracy, rate = curves.curves(rows, "title").axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 1], [4, 0.25]]
    lines = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert lines["val 50.00%"] == [[2, 0.25], [4, 0.5]] and lines["test 37.50%"] == [[4, 0.375]]
    assert lines["train"] == [[1, 0.1], [2, 0.1], [4, 0.1]]
    assert rate.lines[0].get_ydata().tolist() == [0.5] * 3
    assert len({line.get_color() for line in accuracy.lines}) == 3


def test_empty_panels_are_omitted():
    assert len(curves.curves([{"step": 1, "eval/val/acc1": 0.5}]).axes) == 1
    with pytest.raises(ValueError, match="to draw"):
        curves.curves([{"step": 1, "perf/step_ms": 3.0}])


def test_smooth_removes_noise_without_lag():
    line = np.linspace(5, 1, 200)
    np.testing.assert_allclose(curves.smooth(line, 20)[10:-10], line[10:-10], rtol=1e-12)
    np.testing.assert_allclose(curves.smooth(np.full(50, 3.0), 9), 3.0, rtol=1e-12)
    noise = np.random.default_rng(0).normal(size=2000)
    assert curves.smooth(noise, 40).std() < 0.3
    assert curves.smooth([7.0], 0).tolist() == [7.0]
