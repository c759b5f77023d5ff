import pytest
import torch

from nvae.training.state import RunningMean, Snapshot


def test_running_mean_weighs_by_images_and_keeps_the_maximum():
    mean = RunningMean()
    for value, images in ((1.0, 2), (4.0, 1), (2.0, 3)):
        mean.add({"gradient_norm": torch.tensor(value), "kl": torch.tensor([value, 0.0]), "rate": 0.1}, images)
    values = mean.values()
    assert values["gradient_norm"] == pytest.approx(2.0)
    assert values["gradient_norm_max"] == 4.0
    assert values["kl"] == pytest.approx([2.0, 0.0])
    assert values.keys() == {"gradient_norm", "gradient_norm_max", "kl"}
    mean.clear()
    assert mean.values() == {}


def test_running_mean_starts_anew_with_other_metrics():
    mean = RunningMean()
    mean.add({"gradient_norm": torch.tensor(1.0)}, 2)
    mean.add({"gradient_norm": torch.tensor(3.0), "new": torch.tensor(5.0)}, 2)
    assert mean.values() == {"gradient_norm": 3.0, "gradient_norm_max": 3.0, "new": 5.0}


def test_snapshot_restores_all_dtypes_in_place():
    tensors = [torch.tensor([1.0, -5.0]), torch.tensor(3), torch.tensor([2.0], dtype=torch.float64)]
    snapshot = Snapshot(tensors)
    tensors[1] += 1
    snapshot.take()
    assert snapshot.largest(tensors[0].device) == 5
    tensors[0].fill_(torch.nan)
    tensors[1].add_(7)
    tensors[2].zero_()
    assert snapshot.largest(tensors[0].device).isnan()
    snapshot.restore()
    assert [tensor.tolist() for tensor in tensors] == [[1.0, -5.0], 4, [2.0]]
