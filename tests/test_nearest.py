"""Distances to the nearest data, against an exhaustive search (scipy's k-d tree)."""

import pytest
import torch
from measured import Stub
from oracles import rows
from scipy.spatial import cKDTree

from diffusion_cli.metrics import metrics


def close(n, d, seed):
    """Points a distance of about 1e-4 from their neighbours, far from the origin."""
    return rows(n, seed).normal((n, d), torch.float64).float() * 1e-3 + 0.7


def found(x, data):
    return metrics.build({"name": "nearest", "n": len(x)})(Stub(None, data, x)).values


@pytest.mark.parametrize("n, d", [(2000, 2), (300, 48), (20, 3)])
def test_distances_and_copies_are_those_of_a_search(n, d):
    data, x = close(n, d, 0), close(50, d, 1)
    data[7] = x[3] + 1e-5  # a copy
    told = found(x, data)
    two, _ = cKDTree(data.double().numpy()).query(x.double().numpy(), 2)
    two /= d**0.5
    assert told["distance"] == pytest.approx(two[:, 0].mean(), rel=1e-4)
    assert told["closest"] == pytest.approx(two[:, 0].min(), rel=1e-2)  # of 1e-5
    assert told["copies"] == (two[:, 0] < two[:, 1] / 3).mean() > 0


def test_a_sample_of_the_data_is_at_no_distance():
    data = close(100, 4, 0)
    told = found(data[:10], data)
    assert told["closest"] == told["distance"] == 0 and told["copies"] == 1


def test_a_single_datum_has_no_copies():
    """No second nearest: its distance is infinite, and each sample is its copy."""
    told = found(close(5, 2, 1), close(1, 2, 0))
    assert told["copies"] == 1 and 0 < told["distance"] < 1
