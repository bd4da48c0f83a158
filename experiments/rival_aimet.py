"""SeqMSE and AdaRound as aimet-torch has them, brought on the common grid."""

import contextlib
import io
import logging
import tempfile
import warnings

import torch
from rival_problem import Problem
from torch import Tensor, nn

from bitsplit.grid import Grid
from bitsplit.layout import grouped_weight
from bitsplit.methods.base import Codes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.common.utils import AimetLogger
    from aimet_torch.nn import BaseQuantizationMixin
    from aimet_torch.quantization.affine import QuantizeDequantize
    from aimet_torch.quantsim import QuantizationSimModel
    from aimet_torch.seq_mse import apply_seq_mse

# Steps a layer, a fifteenth of aimet's default below 8 bits, so that a network takes minutes of a thread.
ADAROUND_STEPS = 1000


def solve(algorithm: str, problem: Problem) -> dict[str, Codes]:
    """Integer weights by layer; `algorithm` is a key of `ALGORITHMS`.

    aimet's symmetric grid has one more negative integer than ours, and refuses to do without: a code on it becomes the
    next one. Weights that AdaRound leaves between two integers go to the nearer, as in aimet's own simulation.
    """
    AimetLogger.set_level_for_all_areas(logging.ERROR)
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        simulation = _simulation(problem)
        scales = ALGORITHMS[algorithm](simulation, problem)
        layers = {name: simulation.model.get_submodule(name) for name in problem.layers}
        return {name: _codes(layer, scales[name], problem.wbits[name]) for name, layer in layers.items()}


def _simulation(problem: Problem) -> QuantizationSimModel:
    """aimet's copy of the network: weights quantized by output channel, and nothing else."""
    scheme = QuantScheme.post_training_tf_enhanced
    simulation = QuantizationSimModel(problem.network, dummy_input=problem.images[0][:1], quant_scheme=scheme)
    for name, module in simulation.model.named_modules():
        if isinstance(module, BaseQuantizationMixin):
            for quantizers in (module.input_quantizers, module.output_quantizers):
                for place in range(len(quantizers)):
                    quantizers[place] = None
            for parameter in module.param_quantizers:
                module.param_quantizers[parameter] = None
            if name in problem.wbits:
                shape = (len(module.weight), *[1] * (module.weight.dim() - 1))
                module.param_quantizers["weight"] = QuantizeDequantize(shape, problem.wbits[name], symmetric=True)
    return simulation


def _scales(simulation: QuantizationSimModel, problem: Problem) -> dict[str, Tensor]:
    quantizers = {name: simulation.model.get_submodule(name).param_quantizers["weight"] for name in problem.layers}
    return {name: quantizer.get_scale().detach() for name, quantizer in quantizers.items()}


def _codes(layer: nn.Module, scale: Tensor, bits: int) -> Codes:
    rows = grouped_weight(layer)
    scale = scale.reshape(rows.shape[:2])
    return Codes(Grid(bits).quantize(rows, scale.unsqueeze(-1)).to(torch.int8), scale)


def _seq_mse(simulation: QuantizationSimModel, problem: Problem) -> dict[str, Tensor]:
    apply_seq_mse(simulation, problem.images)
    return _scales(simulation, problem)


def _adaround(simulation: QuantizationSimModel, problem: Problem) -> dict[str, Tensor]:
    parameters = AdaroundParameters(problem.images, len(problem.images), default_num_iterations=ADAROUND_STEPS)
    Adaround._compute_param_encodings(simulation)  # aimet's public function knows no bits below 4
    scales = _scales(simulation, problem)
    with tempfile.TemporaryDirectory() as scratch:  # for aimet's own file of scales
        Adaround._apply_adaround(simulation, problem.network, problem.images[0][:1], parameters, scratch, "weights")
    return scales


ALGORITHMS = {"seq_mse": _seq_mse, "adaround": _adaround}
