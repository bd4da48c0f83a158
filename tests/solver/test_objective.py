"""f, its optimal scale and the coupling of coordinates, against the data itself and plain loops."""

import numpy as np
import pytest
import torch
from problems import problem, relu_layer, squared_error

from bitsplit.solver.bitsplit import solve
from bitsplit.solver.objective import living, objective, optimal_scale, panels, strongest_coupling


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_objective_is_the_squared_error_without_the_energy(bits):
    weight, x, y = relu_layer(bits, inputs=20, outputs=6)
    solution = solve(*(torch.tensor(v) for v in (x @ x.T, y @ x.T)), bits, weight=torch.tensor(weight))
    energy = (y**2).sum(axis=1)
    expected = squared_error(solution, x, y) - energy
    np.testing.assert_allclose(solution.objective.numpy(), expected, atol=1e-9 * energy.max())
    again = objective(solution.codes, solution.scale, torch.tensor(x @ x.T), torch.tensor(y @ x.T))
    np.testing.assert_allclose(again.numpy(), expected, atol=1e-9 * energy.max())


def test_objective_of_a_wide_layer_is_summed_in_parts(monkeypatch):
    gram, cross, weight = problem(*relu_layer(6, 23, 4)[:2])
    whole = objective(weight.round(), weight.new_ones(4), gram, cross)
    monkeypatch.setattr("bitsplit.solver.objective._COLUMNS", 5)
    torch.testing.assert_close(objective(weight.round(), weight.new_ones(4), gram, cross), whole)


def test_scale_is_the_least_squares_one():
    weight, x, y = relu_layer(3, inputs=15, outputs=5)
    gram, cross, w = problem(weight, x)
    solution = solve(gram, cross, 3, weight=w)
    for row, q in enumerate(solution.codes.double().numpy()):
        expected = np.linalg.lstsq((q @ x)[:, None], y[row], rcond=None)[0].item()
        assert solution.scale[row].item() == pytest.approx(expected, rel=1e-6)


def test_codes_that_reach_no_output_take_the_fallback():
    gram, cross, weight = problem(*relu_layer(4, inputs=6, outputs=3)[:2])
    codes, fallback = weight.round(), torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64)
    codes[1] = 0
    scale = optimal_scale(codes, gram, cross, fallback)
    assert scale[1] == 8 and scale[0] != 7 and scale[2] != 9
    assert torch.equal(optimal_scale(codes, gram, cross, fallback, codes @ gram), scale)
    nothing = torch.zeros_like(gram)
    assert torch.equal(optimal_scale(codes, nothing, cross * 0, fallback), fallback)


def test_living_inputs_and_the_strongest_coupling():
    gram = torch.tensor([[[4.0, -3, 0, 1], [-3, 5, 0, 2], [0, 0, 0, 0], [1, 2, 0, 9]]])
    before = gram.clone()
    assert living(gram).tolist() == [[[True, True, False, True]]]
    assert strongest_coupling(gram).tolist() == [[3, 3, 0, 2]]
    assert torch.equal(gram, before)


def test_panels_are_all_rows_in_order(monkeypatch):
    monkeypatch.setattr("bitsplit.solver.objective._VALUES", 2 * 3 * 5)  # two rows of both matrices
    rows = torch.arange(3.0 * 7 * 5).reshape(3, 7, 5)
    parts = list(panels(rows, -rows))
    assert [part.shape[1] for part, _ in parts] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([part for part, _ in parts], dim=1), rows)
    assert all(torch.equal(part, -other) for part, other in parts)
