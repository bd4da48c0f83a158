"""Running one loop of the solver on copies, and beside the plain one."""

import inspect

import plain
import pytest
import torch
from problems import problem, relu_layer
from torch import Tensor

from bitsplit.solver import compiled
from bitsplit.solver.objective import optimal_scale

# What each loop changes, of its arguments.
CHANGES = {
    "descend_plane": {"plane", "residual"},
    "rescale": {"scale", "residual"},
    "descend": {"codes", "scale", "residual"},
    "exchange": {"codes", "scale", "residual"},
    "extend_paths": {"cost"},
    "least_pivots": {"gram"},
}


def run(loops, name, *arguments):
    """(what the loop returns, its arguments by name as it leaves them); the arguments themselves stay as they are."""
    loop = getattr(loops, name)
    bound = inspect.signature(loop).bind(*arguments).arguments
    values = {key: value.clone() if isinstance(value, Tensor) else value for key, value in bound.items()}
    result = loop(**values)
    for key, value in values.items():
        if isinstance(value, Tensor) and key not in CHANGES[name]:
            assert torch.equal(value, bound[key]), key
    return result, {key: values[key] for key in CHANGES[name]}


def run_both(name, *arguments):
    """`run` of the compiled loop, whose results are the plain one's: integers exactly, all else but for rounding."""
    (result, changed), (expected, expected_changed) = (run(each, name, *arguments) for each in (compiled, plain))
    assert type(result) is type(expected)
    for key, value in changed.items():
        assert_equal(value, expected_changed[key])
    if not isinstance(expected, tuple):
        assert result == expected
    return result, changed, expected


def on_plain_loops(function, *arguments):
    """What `function` of the solver returns with the plain loops in place of the compiled ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(compiled, name, getattr(plain, name))
        return function(*arguments)


def assert_equal(value, expected):
    assert value.dtype == expected.dtype and value.shape == expected.shape
    if (expected == expected.round()).all():
        assert torch.equal(value, expected)
    else:
        torch.testing.assert_close(value, expected)


def rounded_layer(seed, grid, inputs, outputs, dtype=torch.float64):
    """(codes, scale, gram, cross, residual) of rounded weights at their optimal scale, with one group."""
    layer = problem(*relu_layer(seed, inputs, outputs)[:2], dtype=dtype)
    gram, cross, weight = (part.unsqueeze(0) for part in layer)
    scale = grid.scale_by_max(weight)
    codes = grid.quantize(weight, scale.unsqueeze(-1))
    best = optimal_scale(codes, gram, cross, scale)
    scale = torch.where(best > 0, best, scale)
    return codes, scale, gram, cross, cross - scale.unsqueeze(-1) * (codes @ gram)
