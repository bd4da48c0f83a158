"""GPTQ, GPFQ, Qronos and learned rounding as brevitas has them, on the common grid."""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from functools import partial

import torch
from rival_problem import Problem, codes_on_grid
from torch import nn

from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import replace_module
from bitsplit.methods.base import Codes
from bitsplit.progress import progress

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about an optional kernel for GPUs
    import brevitas.nn as qnn
    from brevitas.graph.gpfq import GPFQ, gpfq_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.qronos import Qronos
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloatMSE, Uint8ActPerTensorFloat

ROUNDING_STEPS = 1000  # a layer, brevitas' default
ROUNDING_BATCH = 32  # images a step, where brevitas takes one by default


def solve(algorithm: str, problem: Problem) -> dict[str, Codes]:
    """Integer weights by layer; `algorithm` is a key of `ALGORITHMS`.

    Scales of weights are brevitas' of least squared error by channel, on its narrow grid, which is ours.
    """
    network = _brevitas_network(problem)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network(problem.images[0])  # sets the scales
        ALGORITHMS[algorithm](network, problem)
        weights = {name: network.get_submodule(name).quant_weight() for name in problem.layers}
    return {
        name: codes_on_grid(weight.value, weight.scale, problem.wbits[name], name) for name, weight in weights.items()
    }


def _brevitas_network(problem: Problem) -> nn.Module:
    network = copy.deepcopy(problem.network)
    for name, layer in problem.layers.items():
        options = {"bias": layer.bias is not None, "weight_quant": _weight_quantizer(problem.wbits[name])}
        if (quantizer := problem.input_quantizer(name)) is not None:
            options["input_quant"] = _input_quantizer(quantizer)
        if type(layer) is nn.Conv2d:
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
            ours = qnn.QuantConv2d(*sizes, layer.dilation, layer.groups, **options)
        elif type(layer) is nn.Linear:
            ours = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
        else:
            raise ValueError(f"{name} is a {type(layer).__name__}, with a forward of its own")
        ours.weight.data.copy_(layer.weight.data)
        if layer.bias is not None:
            ours.bias.data.copy_(layer.bias.data)
        replace_module(network, network.get_submodule(name), ours)
    return network.eval()


def _weight_quantizer(bits: int) -> type:
    return type("Weight", (Int8WeightPerChannelFloatMSE,), {"bit_width": bits})


def _input_quantizer(quantizer: InputQuantizer) -> type:
    """brevitas' quantizer with the common scale: it is given the threshold, not the step."""
    base = Int8ActPerTensorFloat if quantizer.signed else Uint8ActPerTensorFloat
    threshold = quantizer.scale.item() * quantizer.grid.high
    options = {"bit_width": quantizer.bits, "narrow_range": quantizer.signed}
    return type("Input", (base,), options | {"scaling_impl_type": ScalingImplType.CONST, "scaling_init": threshold})


def _layer_by_layer(mode: Callable, network: nn.Module, problem: Problem) -> None:
    """One pass over the images up to each layer, as brevitas' own programs do it."""
    with mode(network) as pass_:
        for _ in progress(range(pass_.num_layers), "layers"):
            for images in problem.images:
                pass_.model(images)
            pass_.update()


def _learn_rounding(network: nn.Module, problem: Problem) -> None:
    """AdaRound's regularised rounding, layer by layer, by the trainer and with the defaults of brevitas' examples."""
    from brevitas_examples.common.learned_round import learned_round_args as args
    from brevitas_examples.common.learned_round.learned_round_method import LearnedRoundArgs
    from brevitas_examples.common.learned_round.learned_round_trainer import LearnedRoundTrainer, get_blocks
    from brevitas_examples.imagenet_classification.ptq import learned_round_utils as vision

    optimizer = args.OptimizerArgs(target_params="learned_round", optimizer_cls="Adam", lr=1e-3, optimizer_kwargs={})
    losses = [args.LossArgs(cls="round_reg"), args.LossArgs(cls="mse", kwargs={"reduction": "none", "dim": 1})]
    training = args.TrainingArgs(
        optimizers_args=[optimizer],
        losses_args=losses,
        batch_size=ROUNDING_BATCH,
        iters=ROUNDING_STEPS,
        use_best_model=False,
        use_amp=False,
    )
    handler = args.HandlerSpec[LearnedRoundArgs](name="learned_round", config=LearnedRoundArgs("hard_sigmoid"))
    config = args.TrainerConfig(training_args=training, training_handlers=[handler])
    quiet = io.StringIO()
    with torch.enable_grad(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        LearnedRoundTrainer(config=config).train(
            model=network,
            model_forward=vision.vision_forward,
            block_forward=vision.vision_block_forward,
            data_loader=[(images, None) for images in problem.images],
            cache=vision.CacheVision(),
            get_blocks_fn=partial(get_blocks, block_check_fn=vision.is_layer),
        )
    network.eval()


ALGORITHMS = {
    "gptq": partial(_layer_by_layer, gptq_mode),
    "gpfq": partial(_layer_by_layer, partial(gpfq_mode, algorithm_impl=GPFQ)),
    # As its authors run it: inputs of most power first.
    "qronos": partial(_layer_by_layer, partial(gpfq_mode, algorithm_impl=Qronos, act_order=True)),
    "learned_rounding": _learn_rounding,
}
