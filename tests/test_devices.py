"""Solver, statistics, `quantize` and files on every device that is there: the CPU, and a GPU where torch finds one."""

import pytest
import torch
from problems import problem, relu_layer
from small_networks import BATCHES, EVERY, SMALL, TEST, Residual, lively, outputs, quantized_layers

import bitsplit
from bitsplit.solver.bitsplit import ALGORITHMS, solve

GPU = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.fixture(params=["cpu", GPU])
def device(request):
    return torch.device(request.param)


def noise_between(values, reference):
    return (values - reference).square().mean() / reference.square().mean()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bits", [3, 4])
def test_a_layer_is_solved_on_its_device_as_on_the_cpu(device, algorithm, bits):
    tensors = problem(*relu_layer(bits, inputs=20, outputs=6)[:2])
    here = solve(*(values.to(device) for values in tensors[:2]), bits, tensors[2].to(device), algorithm)
    there = solve(*tensors[:2], bits, tensors[2], algorithm)
    assert here.codes.device.type == here.scale.device.type == device.type
    assert torch.equal(here.codes.cpu(), there.codes)
    torch.testing.assert_close(here.scale.cpu(), there.scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_a_network_is_quantized_on_its_device_and_leaves_it(device, method, tmp_path):
    torch.manual_seed(0)
    network = lively(Residual())
    expected = bitsplit.quantize(network, BATCHES, 4, 4, method, settings=SMALL)
    network.to(device)
    quantized = bitsplit.quantize(network, [images.to(device) for images in BATCHES], 4, 4, method, settings=SMALL)
    tensors = [*quantized.parameters(), *quantized.buffers()]
    assert {values.device.type for values in tensors} == {device.type}
    for name, layer in quantized_layers(quantized).items():
        same = layer.codes.cpu() == quantized_layers(expected)[name].codes
        assert same.float().mean() > 0.97, name  # sums in another order may round a code the other way
    computed = outputs(quantized, TEST.to(device))
    assert computed.device.type == device.type
    assert noise_between(computed.cpu(), outputs(expected)) < 0.02

    bitsplit.save(quantized, tmp_path / "network")
    loaded = bitsplit.load(tmp_path / "network", network)
    assert torch.equal(outputs(loaded, TEST.to(device)), computed)
    on_cpu = bitsplit.load(tmp_path / "network", Residual())
    if device.type == "cpu":
        torch.testing.assert_close(outputs(on_cpu), computed, rtol=1e-3, atol=1e-3)
    # A value on the edge between two codes falls to either side: on a GPU torch convolves with ten bits of mantissa.
    assert noise_between(computed.cpu(), outputs(on_cpu)) < 1e-3
    assert bitsplit.verify(quantized, TEST.to(device))["rescale_deviation"].max() < 1e-6


def test_the_network_is_run_in_full_precision_and_the_user_keeps_their_own(device):
    torch.manual_seed(0)
    network, seen = lively(Residual()).to(device), []
    hook = network.stem.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    bitsplit.quantize(network, BATCHES, 4, 4, settings=SMALL)
    hook.remove()
    assert before and torch.backends.cudnn.allow_tf32 and seen and not any(seen)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_a_gpu_gives_the_same_codes_every_time(method):
    torch.manual_seed(0)
    network = lively(Residual()).cuda()
    first, second = (quantized_layers(bitsplit.quantize(network, BATCHES, 4, 4, method, settings=SMALL)) for _ in "12")
    assert all(torch.equal(layer.codes, second[name].codes) for name, layer in first.items())


def test_statistics_are_collected_where_the_images_are(device):
    """Images on the CPU are moved to the network."""
    torch.manual_seed(0)
    network = lively(Residual())
    there = bitsplit.quantize(network, BATCHES, 4, 4, settings=SMALL)
    here = bitsplit.quantize(network.to(device), BATCHES, 4, 4, settings=SMALL)
    assert here.stem.codes.device.type == device.type
    errors = [report.set_index("name")["relative_error"] for report in (here.report, there.report)]
    torch.testing.assert_close(*(torch.tensor(error.to_numpy()) for error in errors), rtol=0.05, atol=1e-4)
