"""`solve` with each of its algorithms: rounds, invariances, degenerate layers, wrong arguments."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import on_plain_loops
from problems import cases, problem, relu_layer, squared_error

from bitsplit.errors import InputError
from bitsplit.solver.bitsplit import ALGORITHMS, ROUNDS, solve
from bitsplit.statistics.moments import LayerStats

# Rounds


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounds_are_a_count(algorithm, bits):
    gram, cross, weight = problem(*relu_layer(bits, inputs=24, outputs=7)[:2])
    counts = {bound: solve(gram, cross, bits, weight, algorithm, bound).rounds for bound in (0, 1, 2, 3, ROUNDS)}
    assert all(count <= bound for bound, count in counts.items())
    if algorithm == "gptq":
        assert set(counts.values()) == {0}
    else:
        assert counts[1] == 1 < counts[ROUNDS] < ROUNDS
    for bound, count in counts.items():
        assert on_plain_loops(solve, gram, cross, bits, weight, algorithm, bound).rounds == count


@pytest.mark.parametrize("algorithm", ["planes", "integers"])
def test_a_bound_beyond_the_count_changes_nothing(algorithm):
    gram, cross, weight = problem(*relu_layer(5, inputs=24, outputs=7)[:2])
    solution = solve(gram, cross, 4, weight, algorithm)
    exact = solve(gram, cross, 4, weight, algorithm, solution.rounds)
    assert exact.rounds == solution.rounds and torch.equal(exact.codes, solution.codes)
    fewer = solve(gram, cross, 4, weight, algorithm, 1)
    assert not torch.equal(fewer.codes, solution.codes)


# Invariances


@cases
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), inputs=st.integers(1, 24), outputs=st.integers(2, 6))
def test_rows_are_independent(seed, bits, inputs, outputs):
    gram, cross, weight = problem(*relu_layer(seed, inputs, outputs)[:2])
    together = solve(gram, cross, bits, weight=weight)
    for row in range(outputs):
        alone = solve(gram, cross[row : row + 1], bits, weight=weight[row : row + 1])
        assert torch.equal(alone.codes[0], together.codes[row])
        np.testing.assert_allclose(alone.scale[0], together.scale[row], rtol=1e-6)
    order = torch.tensor(np.random.default_rng(seed).permutation(outputs))
    permuted = solve(gram, cross[order], bits, weight=weight[order])
    assert torch.equal(permuted.codes, together.codes[order])
    np.testing.assert_allclose(permuted.scale, together.scale[order], rtol=1e-6)


@cases
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), leading=st.sampled_from([(1,), (3,), (2, 2)]))
def test_groups_are_independent(seed, bits, leading):
    count = int(np.prod(leading))
    parts = [problem(*relu_layer(seed + g, 10, 3)[:2]) for g in range(count)]
    gram, cross, weight = (torch.stack(p).reshape(*leading, *p[0].shape) for p in zip(*parts, strict=True))
    together = solve(gram, cross, bits, weight=weight)
    assert together.codes.shape == weight.shape and together.scale.shape == weight.shape[:-1]
    for g, part in enumerate(parts):
        alone = solve(part[0], part[1], bits, weight=part[2])
        assert torch.equal(alone.codes, together.codes.flatten(0, -3)[g])
        np.testing.assert_allclose(alone.scale, together.scale.flatten(0, -2)[g], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["integers", "gptq", "lattice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_and_rows_are_independent_in_the_other_algorithms(algorithm, dtype):
    layers = [problem(*relu_layer(seed, 12, 5)[:2], dtype=dtype) for seed in range(3)]
    together = solve(*(torch.stack(parts) for parts in list(zip(*layers, strict=True))[:2]), 3, algorithm=algorithm)
    for group, (gram, cross, _) in enumerate(layers):
        alone = solve(gram, cross, 3, algorithm=algorithm)
        assert torch.equal(together.codes[group], alone.codes)
        row = solve(gram, cross[2:3], 3, algorithm=algorithm)
        assert torch.equal(row.codes[0], alone.codes[2])


@cases
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), exponent=st.integers(-12, 12))
def test_scaling_the_weights_scales_the_scale(seed, bits, exponent):
    gram, cross, weight = problem(*relu_layer(seed, 12, 4)[:2])
    factor = 2.0**exponent
    unscaled, scaled = solve(gram, cross, bits, weight), solve(gram, factor * cross, bits, factor * weight)
    assert torch.equal(scaled.codes, unscaled.codes)
    assert torch.equal(scaled.scale, factor * unscaled.scale)


def test_a_negative_scale_is_mirrored():
    gram, cross, weight = problem(*relu_layer(8, 10, 4)[:2])
    expected, mirrored = (solve(gram, cross, 4, sign * weight, rounds=0) for sign in (1, -1))
    assert torch.equal(mirrored.codes, expected.codes) and torch.equal(mirrored.scale, expected.scale)
    assert torch.equal(mirrored.objective, expected.objective) and (mirrored.scale > 0).all()


def test_memory_layout_does_not_matter():
    gram, cross, weight = problem(*relu_layer(1, 12, 5)[:2])
    gram, cross, weight = (t.expand(2, 3, *t.shape).clone() for t in (gram, cross, weight))
    expected = solve(gram, cross, 4, weight)
    turned = (t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for t in (gram, cross, weight))
    gram, cross, weight = turned
    assert torch.equal(solve(gram, cross, 4, weight).codes, expected.codes)


def test_float32_and_start_from_the_gram_matrix_alone():
    weight, x, _ = relu_layer(11, 16, 6)
    gram, cross, w = problem(weight, x)
    expected = solve(gram, cross, 4, weight=w)
    assert torch.equal(solve(gram, cross, 4).codes, expected.codes)
    single = solve(gram.float(), cross.float(), 4, weight=w.float())
    assert single.codes.dtype == torch.int8 and single.scale.dtype == torch.float32
    assert torch.equal(single.codes, expected.codes)


def test_rows_are_solved_some_at_a_time(monkeypatch):
    """Of a layer too large for all its rows at once: the same integers, and statistics, as of the rows together."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 40, 12, dtype=torch.float64), torch.randn(1, 9, 12, dtype=torch.float64)
    gram = x.mT @ x / 40
    together = LayerStats.of_weight(gram, weight, 40)
    whole = solve(gram, together.cross, 4, weight)
    monkeypatch.setattr("bitsplit.solver.objective._VALUES", 2 * 12)  # two rows
    apart = solve(gram, together.cross, 4, weight)
    assert torch.equal(apart.codes, whole.codes) and torch.allclose(apart.scale, whole.scale)
    assert torch.allclose(apart.objective, whole.objective) and apart.rounds == whole.rounds
    assert torch.equal(LayerStats.of_weight(gram, weight, 40).energy, together.energy)


# Degenerate layers


def assert_finite(solution, bits):
    high = 2 ** (bits - 1) - 1
    assert solution.scale.isfinite().all() and solution.objective.isfinite().all()
    assert (solution.scale > 0).all()
    assert solution.codes.abs().max() <= high


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_weight", [True, False])
def test_zero_rows_and_dead_inputs(bits, dtype, with_weight):
    weight, x, _ = relu_layer(2, 9, 4)
    weight[1], x[[0, 4]] = 0, 0
    gram, cross, w = problem(weight, x, dtype)
    solution = solve(gram, cross, bits, weight=w if with_weight else None)
    assert_finite(solution, bits)
    assert not solution.codes[1].any() and not solution.codes[:, [0, 4]].any()
    assert solution.codes[[0, 2, 3]].any(dim=-1).all()
    living = [1, 2, 3, 5, 6, 7, 8]
    alone = solve(gram[living][:, living], cross[:, living], bits, weight=w[:, living])
    assert solution.objective.sum() <= 0.7 * alone.objective.sum()


@pytest.mark.parametrize("algorithm", ["integers", "gptq", "lattice"])
@pytest.mark.parametrize("bits", [2, 5])
def test_zero_rows_and_dead_inputs_of_the_other_algorithms(algorithm, bits):
    weight, x, _ = relu_layer(4, 20, 6)
    weight[1], x[[3, 7]] = 0, 0
    gram, cross, weight = problem(weight, x, dtype=torch.float32)
    solution = solve(gram, cross, bits, weight=weight, algorithm=algorithm)
    assert (solution.codes[1] == 0).all() and (solution.codes[:, [3, 7]] == 0).all()
    assert solution.scale.isfinite().all() and (solution.scale > 0).all() and solution.objective.isfinite().all()
    nothing = solve(torch.zeros_like(gram), torch.zeros_like(cross), bits, weight=weight, algorithm=algorithm)
    assert (nothing.codes == 0).all() and nothing.scale.isfinite().all()


@pytest.mark.parametrize("algorithm", ["integers", "gptq", "lattice"])
@pytest.mark.parametrize("bits", [2, 5])
def test_zero_rows_and_dead_inputs_on_a_mid_rise_grid(algorithm, bits):
    """Which has no code for zero: a row of zeros has the scale 0, and inputs without a signal half a step."""
    weight, x, _ = relu_layer(4, 20, 6)
    weight[1], x[[3, 7]] = 0, 0
    gram, cross, weight = problem(weight, x, dtype=torch.float32)
    solution = solve(gram, cross, bits, weight=weight, algorithm=algorithm, midrise=True)
    dequantized = solution.scale.unsqueeze(-1) * solution.codes + solution.offset.unsqueeze(-1)
    assert not dequantized[1].any() and (solution.scale > 0).tolist() == [True, False, True, True, True, True]
    assert torch.equal(dequantized[:, 3], solution.scale / 2) and torch.equal(dequantized[:, 7], solution.scale / 2)
    assert solution.codes.min() >= -(2 ** (bits - 1)) and solution.codes.max() < 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_mid_rise_grid_has_the_lower_error(bits):
    """By its one value more; scale, codes and offset give the error that the solution names."""
    gram, cross, weight = problem(*relu_layer(7, 60, 30)[:2])
    energy = (cross * weight).sum()
    plain, midrise = (solve(gram, cross, bits, weight, "lattice", midrise=each) for each in (False, True))
    assert plain.offset is None and torch.equal(midrise.offset, midrise.scale / 2)
    dequantized = midrise.scale.unsqueeze(-1) * midrise.codes + midrise.offset.unsqueeze(-1)
    error = ((dequantized - weight) @ gram * (dequantized - weight)).sum()
    assert error == pytest.approx((midrise.objective.sum() + energy).item(), rel=1e-4)
    assert error < {2: 0.75, 3: 0.9, 4: 0.98}[bits] * (plain.objective.sum() + energy)


@pytest.mark.parametrize("with_weight", [True, False])
def test_all_zero_gram(with_weight):
    weight = torch.tensor(relu_layer(4, 6, 3)[0])
    zero = torch.zeros(6, 6, dtype=torch.float64)
    solution = solve(zero, weight @ zero, 4, weight=weight if with_weight else None)
    assert_finite(solution, 4)
    assert not solution.codes.any() and not solution.objective.any()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rank_deficient_gram_without_weight(rank):
    weight, x, _ = relu_layer(6, 12, 5, patches=rank)
    y = weight @ x
    solution = solve(torch.tensor(x @ x.T), torch.tensor(y @ x.T), 4)
    assert_finite(solution, 4)
    assert (squared_error(solution, x, y) <= 0.1 * (y**2).sum(axis=1)).all()


# Arguments

GRAM, CROSS = torch.eye(3), torch.ones(2, 3)


@pytest.mark.parametrize(
    "arguments",
    [{"bits": bits} for bits in (1, 9, 0, -4, 32, "4", True, 4.0, None)]
    + [{"gram": torch.eye(4)}, {"gram": torch.ones(3, 4)}, {"gram": torch.eye(3).expand(2, 3, 3)}]
    + [{"gram": torch.ones(3)}, {"cross": torch.ones(3)}, {"cross": torch.ones(2, 2, 3)}]
    + [{"weight": torch.ones(3, 2)}, {"weight": torch.ones(2, 3, 1)}]
    + [{"gram": torch.eye(3) * float("nan")}, {"gram": torch.eye(3) + float("inf")}]
    + [{"cross": CROSS * float("nan")}, {"weight": CROSS * float("nan")}]
    + [{"algorithm": "newton"}, {"algorithm": ""}, {"midrise": True}],
    ids=lambda arguments: "-".join(f"{k}={v}" if k in ("bits", "algorithm") else k for k, v in arguments.items()),
)
def test_wrong_arguments(arguments):
    with pytest.raises(InputError) as error:
        solve(**{"gram": GRAM, "cross": CROSS, "bits": 4} | arguments)
    assert str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bits_may_be_an_integer_of_numpy(algorithm):
    gram, cross, weight = problem(*relu_layer(0, 8, 3)[:2])
    expected, solution = (solve(gram, cross, bits, weight, algorithm) for bits in (3, np.int64(3)))
    assert torch.equal(solution.codes, expected.codes) and torch.equal(solution.scale, expected.scale)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_that_require_a_gradient(algorithm):
    weight = torch.nn.Linear(4, 3).weight
    found = solve(torch.eye(4), weight @ torch.eye(4), 4, weight, algorithm)
    assert torch.equal(found.codes, solve(torch.eye(4), weight.detach(), 4, weight.detach(), algorithm).codes)
