"""The solver against a loop-by-loop transcription of the published algorithm, brute force and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsplit import kernels, solver
from bitsplit.errors import InputError
from bitsplit.solver import descend_planes, objective, optimal_scale, solve, split, stitch
from bitsplit.stats import LayerStats

cases = settings(deadline=None, max_examples=25, derandomize=True)


def relu_layer(seed, inputs, outputs, patches=None):
    """Weights (M, N), correlated inputs X (N, K) as after a ReLU, and outputs Y (M, K), K > N."""
    random = np.random.default_rng(seed)
    patches = patches or 4 * inputs + 20
    mixing = random.standard_normal((inputs, max(2, inputs // 2)))
    x = mixing @ random.standard_normal((mixing.shape[1], patches)) + random.standard_normal((inputs, patches))
    x = np.maximum(x + 0.3, 0)
    weight = random.standard_normal((outputs, inputs)) * np.exp(random.standard_normal((outputs, 1)))
    return weight, x, weight @ x


def problem(weight, x, dtype=torch.float64):
    """(gram, cross, weight) as tensors, averaged over the patches."""
    gram = x @ x.T / x.shape[1]
    return tuple(torch.tensor(values, dtype=dtype) for values in (gram, weight @ gram, weight))


def digits(codes, bits):
    """Signed binary digits of integers, least significant first."""
    return [[int(np.sign(q)) * (abs(int(q)) >> m & 1) for q in codes] for m in range(bits - 1)]


def descend(planes, a, c, rounds):
    """Bit-split of one row on (A, c): planes are lists of -1, 0, 1, and are kept from round to round."""
    planes = [np.array(plane, dtype=float) for plane in planes]
    for _ in range(rounds):
        before = [plane.copy() for plane in planes]
        q = sum(2**m * plane for m, plane in enumerate(planes))
        if q @ a @ q <= 0:
            break
        alpha = (q @ c) / (q @ a @ q)
        for m in reversed(range(len(planes))):
            others = sum((2**i * planes[i] for i in range(len(planes)) if i != m), np.zeros(len(c)))
            target = c - alpha * (a @ others)  # y_m X^T, the correlation that this plane has to explain
            unit = alpha * 2**m
            for n in range(len(c)):
                if a[n, n] > 0:
                    rest = a[n] @ planes[m] - a[n, n] * planes[m][n]
                    free = (target[n] - unit * rest) / (unit * a[n, n])
                    planes[m][n] = min(max(round(free), -1), 1)
        if all((old == new).all() for old, new in zip(before, planes, strict=True)):
            break  # all later rounds repeat this one
    return planes


def alternate(w, high):
    """fwa: codes and scale of one row of weights in weight space."""
    alpha, recent = np.abs(w).max() / high, []
    while alpha not in recent[-5:]:
        recent.append(alpha)
        q = np.clip(np.rint(w / alpha), -high, high)
        alpha = (w @ q) / (q @ q)
    return np.clip(np.rint(w / alpha), -high, high)


def transcribe(weight, x, y, bits):
    """METHODS, section 2, as the published code organises it: codes (M, N) and scale (M,), float64, row by row."""
    a, identity, high = x @ x.T, np.eye(len(x)), 2 ** (bits - 1) - 1
    codes, scales = [], []
    for w, output in zip(weight, y, strict=True):
        c = x @ output
        planes = descend(digits(alternate(w, high), bits), identity, w, rounds=50)
        start = sum(2**m * plane for m, plane in enumerate(planes))
        planes = descend(digits(start, bits), a, c, rounds=100)
        q = sum(2**m * plane for m, plane in enumerate(planes))
        codes.append(q)
        scales.append((q @ c) / (q @ a @ q))
    return np.array(codes), np.array(scales)


def squared_error(solution, x, y):
    """||y - alpha q X||^2 of every row, from the data itself."""
    q, scale = solution.codes.double().numpy(), solution.scale.double().numpy()
    return ((y - scale[:, None] * (q @ x)) ** 2).sum(axis=1)


# Planes


@pytest.mark.parametrize("bits", range(2, 9))
def test_split_and_stitch_are_inverse(bits):
    high = 2 ** (bits - 1) - 1
    codes = torch.arange(-high, high + 1).to(torch.int8)
    planes = split(codes, bits)
    assert planes.dtype == torch.int8 and planes.tolist() == digits(codes.tolist(), bits)
    assert torch.equal(stitch(planes), codes)


def test_figure_1_of_the_paper():
    assert stitch(torch.tensor([[1], [-1], [-1]], dtype=torch.int8)).tolist() == [-5]


@pytest.mark.parametrize("planes", [2, 3])
def test_stitch_of_all_planes_is_the_weighted_sum(planes):
    everything = list(itertools.product((-1, 0, 1), repeat=planes))
    stitched = stitch(torch.tensor(everything, dtype=torch.int8).T)
    assert stitched.tolist() == [sum(2**m * digit for m, digit in enumerate(row)) for row in everything]


# The published algorithm


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("seed, inputs, outputs", [(s, 6 + 34 * s // 9, 1 + (3 * s) % 8) for s in range(10)])
def test_solve_is_the_published_algorithm(bits, seed, inputs, outputs):
    weight, x, y = relu_layer(100 * bits + seed, inputs, outputs)
    codes, scale = transcribe(weight, x, y, bits)
    gram, cross, w = problem(weight, x)
    solution = solve(gram, cross, bits, weight=w)
    assert np.array_equal(solution.codes.numpy(), codes)
    np.testing.assert_allclose(solution.scale.numpy(), scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed, inputs, outputs", [(0, 6, 1), (1, 40, 17), (2, 64, 8), (3, 150, 40)])
def test_compiled_rounds_find_the_planes_of_the_plain_ones(bits, seed, inputs, outputs):
    gram, cross, weight = problem(*relu_layer(seed, inputs, outputs)[:2], dtype=torch.float32)
    scale = weight.abs().amax(dim=-1) / (2 ** (bits - 1) - 1)
    start = split((weight / scale.unsqueeze(-1)).round(), bits)
    scale = optimal_scale(stitch(start), gram, cross, scale)
    residual = cross - scale.unsqueeze(-1) * (stitch(start).float() @ gram)
    for rounds in (1, 2, 4, 100):
        plain, compiled = ([t.clone() for t in (start, scale, residual)] for _ in range(2))
        taken = descend_planes(plain[0], plain[1], gram, cross, plain[2], rounds)
        grouped = [compiled[0].unsqueeze(1)] + [t.unsqueeze(0) for t in (compiled[1], gram, cross, compiled[2])]
        assert kernels.descend_planes(*grouped, rounds) == taken
        assert torch.equal(compiled[0], plain[0])
        torch.testing.assert_close(compiled[1], plain[1])
    assert taken < 100


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 5, 9), (1, 1, 40), (1, 20, 65), (3, 4, 70), (4, 5, 20), (6, 1, 9)])
def test_a_compiled_round_is_the_plain_one_bit_for_bit_where_arithmetic_is_exact(bits, shape):
    """Integers and powers of two leave no rounding, so ties too must fall alike, and the residuals be equal."""
    random = np.random.default_rng(bits)
    signs = torch.tensor(random.choice([-1.0, 1.0], size=(*shape[:-2], shape[-1], 64)), dtype=torch.float32)
    gram = signs @ signs.mT  # 64 on the diagonal
    scale = torch.tensor(2.0 ** random.integers(-3, 3, size=shape[:-1]), dtype=torch.float32)
    planes = torch.tensor(random.integers(-1, 2, size=(bits - 1, *shape)), dtype=torch.int8)
    cross = torch.tensor(random.integers(-4000, 4000, size=shape), dtype=torch.float32) * scale.unsqueeze(-1)
    residual = cross - scale.unsqueeze(-1) * (stitch(planes).float() @ gram)
    plain, compiled, left = planes.clone(), planes.clone(), residual.clone()
    descend_planes(plain, scale, gram, cross, residual, rounds=1)
    kernels.descend_planes(compiled, scale, gram, cross, left, rounds=1)
    assert torch.equal(compiled, plain) and torch.equal(left, residual)
    assert not torch.equal(compiled, planes)
    assert torch.equal(residual, cross - scale.unsqueeze(-1) * (stitch(compiled).float() @ gram))


# Optimality


def test_close_to_the_exhaustive_optimum():
    gaps = []
    for inputs in range(1, 6):
        layers = [relu_layer(1000 * inputs + seed, inputs, 1, patches=12) for seed in range(40)]
        gram, cross, weight = (torch.stack(part) for part in zip(*(problem(w, x) for w, x, _ in layers), strict=True))
        found = solve(gram, cross, 3, weight=weight).objective.squeeze(-1).numpy()
        every = np.array(list(itertools.product(range(-3, 4), repeat=inputs)))
        every = every[every.any(axis=1)]
        linear = every @ cross.squeeze(1).numpy().T
        quadratic = np.einsum("qn,gnm,qm->qg", every, gram.numpy(), every, optimize=True)
        best = (-(linear**2) / quadratic).min(axis=0)
        assert (found >= best - 1e-9 * np.maximum(1, np.abs(best))).all()
        gaps += list((found - best) / np.abs(best))
    assert len(gaps) == 200
    assert np.mean(gaps) < 0.05


@pytest.mark.parametrize("bits", range(2, 9))
def test_error_never_rises_from_sweep_to_sweep(bits):
    weight, x, y = relu_layer(bits, inputs=48, outputs=12)
    gram, cross, w = problem(weight, x)
    errors = np.array([squared_error(solve(gram, cross, bits, w, sweeps=k), x, y) for k in range(12)])
    energy = (y**2).sum(axis=1)
    assert (np.diff(errors, axis=0) <= 1e-9 * energy).all()
    assert errors[-1].sum() < 0.95 * errors[0].sum()


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
    monkeypatch.setattr("bitsplit.objective._COLUMNS", 5)
    torch.testing.assert_close(objective(weight.round(), weight.new_ones(4), gram, cross), whole)


def test_scale_is_the_least_squares_one():
    weight, x, y = relu_layer(3, inputs=15, outputs=5)
    gram, cross, w = problem(weight, x)
    solution = solve(gram, cross, 3, weight=w)
    for row, q in enumerate(solution.codes.double().numpy()):
        expected = np.linalg.lstsq((q @ x)[:, None], y[row], rcond=None)[0].item()
        assert solution.scale[row].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bits", [3, 4])
def test_result_ends_at_a_fixed_point(bits):
    gram, cross, weight = problem(*relu_layer(7, inputs=30, outputs=8)[:2])
    solution = solve(gram, cross, bits, weight=weight)
    assert solution.sweeps < solver.SWEEPS
    longer = solve(gram, cross, bits, weight=weight, sweeps=solution.sweeps + 20)
    assert torch.equal(solution.codes, longer.codes) and solution.sweeps == longer.sweeps


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


@cases
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), exponent=st.integers(-12, 12))
def test_scaling_the_weights_scales_the_scale(seed, bits, exponent):
    gram, cross, weight = problem(*relu_layer(seed, 12, 4)[:2])
    factor = 2.0**exponent
    plain, scaled = solve(gram, cross, bits, weight), solve(gram, factor * cross, bits, factor * weight)
    assert torch.equal(scaled.codes, plain.codes)
    assert torch.equal(scaled.scale, factor * plain.scale)


def test_a_negative_scale_is_mirrored():
    gram, cross, weight = problem(*relu_layer(8, 10, 4)[:2])
    expected, mirrored = (solve(gram, cross, 4, sign * weight, sweeps=0) for sign in (1, -1))
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


# Errors

GRAM, CROSS = torch.eye(3), torch.ones(2, 3)


@pytest.mark.parametrize(
    "arguments",
    [{"bits": bits} for bits in (1, 9, 0, -4, 32, "4", True, 4.0, None)]
    + [{"gram": torch.eye(4)}, {"gram": torch.ones(3, 4)}, {"gram": torch.eye(3).expand(2, 3, 3)}]
    + [{"gram": torch.ones(3)}, {"cross": torch.ones(3)}, {"cross": torch.ones(2, 2, 3)}]
    + [{"weight": torch.ones(3, 2)}, {"weight": torch.ones(2, 3, 1)}]
    + [{"gram": torch.eye(3) * float("nan")}, {"gram": torch.eye(3) + float("inf")}]
    + [{"cross": CROSS * float("nan")}, {"weight": CROSS * float("nan")}]
    + [{"algorithm": "newton"}, {"algorithm": ""}],
    ids=lambda arguments: "-".join(f"{k}={v}" if k in ("bits", "algorithm") else k for k, v in arguments.items()),
)
def test_wrong_arguments(arguments):
    with pytest.raises(InputError) as error:
        solve(**{"gram": GRAM, "cross": CROSS, "bits": 4} | arguments)
    assert str(error.value) and "\n" not in str(error.value)


def test_rows_are_solved_some_at_a_time(monkeypatch):
    """Of a layer too large for all its rows at once: the same integers, and statistics, as of the rows together."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 40, 12, dtype=torch.float64), torch.randn(1, 9, 12, dtype=torch.float64)
    gram = x.mT @ x / 40
    together = LayerStats.of_weight(gram, weight, 40)
    whole = solve(gram, together.cross, 4, weight)
    monkeypatch.setattr("bitsplit.objective._VALUES", 2 * 12)  # two rows
    apart = solve(gram, together.cross, 4, weight)
    assert torch.equal(apart.codes, whole.codes) and torch.allclose(apart.scale, whole.scale)
    assert torch.allclose(apart.objective, whole.objective) and apart.sweeps == whole.sweeps
    assert torch.equal(LayerStats.of_weight(gram, weight, 40).energy, together.energy)
