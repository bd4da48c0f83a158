"""The sequential order: every layer solved on what it will really read, whoever runs at the same time."""

import copy

import pytest
import torch
from small_networks import BATCHES, SMALL, Levels, outputs
from torch import nn

import bitsplit
from bitsplit import methods
from bitsplit.layers.batch_norm import batch_norm_statistics, reestimate_batch_norm
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.methods.bitsplit_plus import BitSplitPlus
from bitsplit.plan import Plan
from bitsplit.settings import BatchNorm, Calibration, Settings
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.steps.sequential import quantize_sequentially

SMALL_AND_NO_NORM = Settings(
    calibration=Calibration(samples=20_000, lockstep_patches=10**6), batch_norm=BatchNorm(mode="none")
)
SEQUENTIAL = [name for name in methods.names() if methods.named(name).order == "sequential"]
sequential = pytest.mark.parametrize("method", SEQUENTIAL)


def snr(network, quantized) -> float:
    expected = outputs(network)
    return (10 * torch.log10(expected.square().sum() / (outputs(quantized) - expected).square().sum())).item()


def inputs_of(network: nn.Module, batches) -> dict[str, torch.Tensor]:
    """What every layer's arithmetic reads, by name, over all batches."""
    seen, handles = {}, []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            key = name.removesuffix(".layer")
            handles.append(module.register_forward_pre_hook(lambda _, x, k=key: seen.setdefault(k, []).append(x[0])))
    with torch.no_grad():
        for images in batches:
            network(images.clone())
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@sequential
def test_reported_errors_are_those_of_the_finished_network(network, method):
    """Relative errors come from inside the pass; here the network is run again, on all places of all images."""
    quantized = bitsplit.quantize(network, BATCHES, 3, 4, method, settings=SMALL_AND_NO_NORM)
    read, errors = inputs_of(quantized, BATCHES), quantized.report.set_index("name")["relative_error"]
    for name in ("wide", "mix"):
        original, wrapper = network.get_submodule(name), quantized.get_submodule(name)
        ratios = wrapper.input_quantizer.scale / wrapper.input_quantizer.step
        with torch.no_grad():
            floating = torch.func.functional_call(original, {"weight": original.weight * ratios}, read[name])
            target, given = floating, wrapper.layer(read[name])
        centre = (0, 2, 3)
        target, given = (values - values.mean(dim=centre, keepdim=True) for values in (target, given))
        assert (target - given).square().sum() / target.square().sum() == pytest.approx(errors[name], rel=0.02)


@sequential
def test_the_report_of_weights_leaves_out_the_errors_before_them(network, method):
    """Eight bits change next to nothing, whatever has been lost in the inputs."""
    report = bitsplit.quantize(network, BATCHES, 8, 5, method, settings=SMALL_AND_NO_NORM).report
    assert (report["relative_error"] < 1e-3).all(), report["relative_error"]


@sequential
def test_lanes_change_no_code(network, method):
    states = []
    for lanes in (1, 4):
        quantized, reference = copy.deepcopy(network), copy.deepcopy(network)
        batches = CalibrationBatches(BATCHES, quantized)
        plan = Plan.of(quantized, batches, methods.named(method), SMALL.overridden(3, 4))
        quantize_sequentially(reference, quantized, plan, batches, lanes)
        states.append(quantized.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_compensation_beats_the_parallel_order(network):
    results = {
        name: snr(network, bitsplit.quantize(network, BATCHES, 3, 8, name, settings=SMALL_AND_NO_NORM))
        for name in ("bitsplit", "bitsplit_lattice", "bitsplit_plus")
    }
    assert results["bitsplit_plus"] > results["bitsplit_lattice"] > results["bitsplit"]


@sequential
def test_batch_norm_keeps_its_variances_and_moves_its_means(network, method):
    settings = Settings(calibration=SMALL_AND_NO_NORM.calibration)  # batch-norm as the method prescribes
    trained, moved = (
        batch_norm_statistics(one)
        for one in (network, bitsplit.quantize(network, BATCHES, 3, 4, method, settings=settings))
    )
    assert trained and trained.keys() == moved.keys()
    for name, (mean, variance) in trained.items():
        assert torch.equal(moved[name][1], variance) and not torch.equal(moved[name][0], mean)


@pytest.mark.parametrize("wbits", [4, 32])
def test_folded_scales_compute_what_scales_by_channel_do(network, wbits):
    """ECAQ: with the scales in the weights, and with a scale for each channel behind the quantizer instead."""
    folded = bitsplit.quantize(network, BATCHES, wbits, 4, "bitsplit_ecaq", settings=SMALL_AND_NO_NORM)
    by_channel = copy.deepcopy(folded)
    changed = 0
    for module in by_channel.modules():
        quantizer = getattr(module, "input_quantizer", None)
        if isinstance(quantizer, InputQuantizer) and quantizer.folded and not isinstance(module.layer, nn.Linear):
            own = InputQuantizer(quantizer.grid, quantizer.scale.flatten(), 2)
            share = (quantizer.scale / quantizer.step).flatten()
            groups = module.layer.groups
            columns = share.reshape(groups, -1).repeat_interleave(module.layer.weight.shape[0] // groups, dim=0)
            module.input_quantizer = own
            module.layer.weight.detach().div_(columns[:, :, None, None])
            changed += 1
    assert changed >= 2
    assert torch.allclose(outputs(by_channel), outputs(folded), atol=1e-4)
    if wbits == 32:  # nothing else has been done to the weights
        for name, module in by_channel.named_modules():
            if name.endswith(".layer") and isinstance(module, nn.Conv2d):
                assert torch.allclose(module.weight, network.get_submodule(name.removesuffix(".layer")).weight)
    for module in folded.modules():
        if isinstance(module, InputQuantizer):
            codes = module(torch.randn(2, *module.scale.shape)) / module.step
            assert torch.allclose(codes, codes.round(), atol=1e-3) and module.step.dim() == 0


class Tied(nn.Module):
    """Weights that an embedding shares and that a decoder transposes, a bias of two layers, a norm behind two, a bias
    computed from another; or, untied, the same numbers in parameters and modules of their own."""

    def __init__(self, tied: bool):
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.encoder, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 6)
        self.embedding = nn.Embedding(6, 8)
        self.one, self.two, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.norm.running_var.fill_(0.1)
        self.other_norm = self.norm if tied else copy.deepcopy(self.norm)
        self.last = nn.Linear(6, 6)
        self.decoder = None if tied else nn.Parameter(self.encoder.weight.detach().clone())
        self.head.weight, self.two.bias = self.embedding.weight, self.one.bias
        if tied:
            nn.utils.parametrize.register_parametrization(self.head, "bias", nn.Identity())
        else:
            self.head.weight, self.two.bias = (
                nn.Parameter(p.detach().clone()) for p in (self.head.weight, self.two.bias)
            )

    def forward(self, x):
        x = self.stem(x).relu().mean((2, 3)) * torch.linspace(0.1, 3, 8) + self.embedding.weight.mean(0)
        code = self.encoder(x).relu()
        x = code @ (self.encoder.weight if self.decoder is None else self.decoder).t() + x
        x = (self.norm(self.one(x)) + self.other_norm(self.two(x))).relu()
        return self.last(self.head(x).relu())


@sequential
def test_what_layers_share_with_others_stays_right(method):
    errors = {}
    for tied in (True, False):
        network = Tied(tied).eval()
        quantized = bitsplit.quantize(network, BATCHES, 8, 8, method, settings=SMALL_AND_NO_NORM)
        assert torch.equal(quantized.embedding.weight, network.embedding.weight)
        errors[tied] = -snr(network, quantized)
    assert errors[True] < errors[False] + 3, errors  # was 20 and more where scales went into a weight used twice


@sequential
def test_weights_in_floating_point_hold_the_scales_of_their_inputs_too(method):
    """Their inputs have channels of very different ranges."""

    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.middle, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Linear(16, 5)

        def forward(self, x):
            x = self.first(x).relu() * torch.logspace(-1, 1, 16)[:, None, None]
            return self.last(self.middle(x).relu().mean((2, 3)))

    network = Uneven()
    found = {
        wbits: snr(network, bitsplit.quantize(network, BATCHES, wbits, 4, method, settings=SMALL_AND_NO_NORM))
        for wbits in (8, 32)
    }
    assert found[32] > found[8] - 3, found  # was 7 to 15 where their scales stayed behind


class Added(nn.Module):
    """A layer whose output goes through a batch-norm to an addition, and has lost something in both summands."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.before, self.one, self.two = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.3, -0.5, 0.7, 1, 1.5, 2, -3, 0.8]))
            self.norm.bias.copy_(torch.linspace(-1, 1, 8))

    def forward(self, x):
        x = self.before(self.stem(x).relu()).relu()
        return self.last((self.norm(self.two(self.one(x).relu())) + x).relu().mean((2, 3)))


def test_the_last_layer_before_an_addition_makes_up_for_both_summands():
    """With λ = 1 and no damping what is lost behind the addition has no mean and nothing in common with what the layer
    reads: else its weights or the mean could take more of it out."""
    network, seen = Added(), {}
    reestimate_batch_norm(network, BATCHES, len(BATCHES), None)
    with torch.no_grad():
        network.norm.weight.mul_(network.norm.running_var.sqrt())
    network.eval()
    lossy = {"before": (2, 2)}
    quantized = bitsplit.quantize(network, BATCHES, 8, 8, BitSplitPlus(1.0, 0.0), lossy, settings=SMALL_AND_NO_NORM)
    for name, module in {"floating": network, "quantized": quantized}.items():
        summands = seen[name] = {"norm": [], "shortcut": []}
        module.one.register_forward_pre_hook(lambda _, args, kept=summands: kept["shortcut"].append(args[0]))
        module.norm.register_forward_hook(lambda _, args, output, kept=summands: kept["norm"].append(output))
        with torch.no_grad():
            for images in BATCHES:
                module(images)
    read = torch.nn.functional.unfold(inputs_of(quantized, BATCHES)["two"], 3, padding=1).transpose(1, 2).flatten(0, 1)

    def lost(*summands: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Its mean, and what it has in common with what the layer reads."""
        parts = {name: sum(torch.cat(kept[key][: len(BATCHES)]) for key in summands) for name, kept in seen.items()}
        values = (parts["floating"] - parts["quantized"]).transpose(0, 1).flatten(1)
        return values.mean(dim=1), (values - values.mean(dim=1, keepdim=True)) @ (read - read.mean(dim=0)) / len(read)

    (mean, common), (shortcuts_mean, shortcuts_common) = lost("norm", "shortcut"), lost("shortcut")
    assert mean.norm() < 0.05 * shortcuts_mean.norm()
    assert common.norm() < 0.7 * shortcuts_common.norm()  # the rest is rounding to 8 bits


@sequential
def test_the_seed_chooses_the_patches_and_settings_say_of_how_many_images(network, method):
    def codes(seed=0, batches=3, patches=400):
        sizes = Calibration(batch_size=8, samples=20_000, lockstep_batches=batches, lockstep_patches=patches)
        settings = Settings(calibration=sizes, batch_norm=BatchNorm(mode="none"))
        quantized = bitsplit.quantize(network, BATCHES, 3, 32, method, seed=seed, settings=settings)
        assert quantized.lockstep_images == batches * 8
        return quantized.wide.codes

    first = codes()
    assert torch.equal(first, codes())
    assert not any(torch.equal(first, others) for others in (codes(seed=1), codes(batches=2), codes(patches=300)))


@sequential
@pytest.mark.parametrize("kept", ["attribute", "hook"])
def test_what_a_forward_keeps_in_its_module_reaches_no_other(method, kept):
    """Forwards that wait for each other run through one network."""

    class Keeps(nn.Module):
        def __init__(self, kept):
            super().__init__()
            torch.manual_seed(0)
            self.kept, self.skips = kept, {}
            self.stem, self.one, self.two, self.last = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))
            if kept == "hook":
                self.one.register_forward_pre_hook(self.keep)

        def keep(self, _, args):
            self.skips["one"] = args[0]

        def forward(self, x):
            x = skip = self.stem(x).relu()
            if self.kept == "attribute":
                self.skips["one"] = x
            x = self.two(self.one(x).relu())
            return self.last((x + (self.skips["one"] if self.kept else skip)).relu()).mean((2, 3))

    given = {}
    for way in (None, kept):
        quantized = bitsplit.quantize(Keeps(way), BATCHES, 3, 3, method, settings=SMALL_AND_NO_NORM)
        given[way] = quantized.state_dict()
    assert all(torch.equal(value, given[kept][key]) for key, value in given[None].items())


@sequential
@pytest.mark.parametrize("wbits", [4, 32])
def test_a_network_whose_output_is_not_finite_is_refused(method, wbits):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    network(BATCHES[0])
    with torch.no_grad():
        network[-1].bias[1] = torch.nan
    with pytest.raises(bitsplit.InputError, match="output holds NaN"):
        bitsplit.quantize(network, BATCHES, wbits, 4, method, settings=SMALL_AND_NO_NORM)


def test_layers_called_several_times_are_solved_on_all_their_calls():
    network = Levels()
    quantized = bitsplit.quantize(network, BATCHES, 3, 32, "bitsplit_plus", settings=SMALL_AND_NO_NORM)
    assert quantized.one.codes is not None and snr(network, quantized) > 10


@sequential
def test_a_layer_that_some_forwards_leave_out_is_solved_on_the_others(method):
    """And one that none calls in the quantized network stays as it is, and is noted."""

    class Detects(nn.Module):
        def __init__(self, least):
            super().__init__()
            torch.manual_seed(0)
            self.least, self.conv, self.mask = least, nn.Conv2d(3, 8, 3), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            features = self.conv(x).relu().mean(dim=(2, 3))
            kept = features[features[:, 0] > self.least]
            return self.mask(kept) if len(kept) else kept

    with torch.no_grad():
        scores = torch.stack([Detects(0.0).conv(images).relu()[:, 0].mean(dim=(1, 2)).max() for images in BATCHES])
    sometimes = Detects(scores.sort().values[[1, 2]].mean().item())
    batches = sorted(torch.cat(BATCHES).split(1), key=lambda image: -len(sometimes(image)))
    quantized = bitsplit.quantize(sometimes, batches, 4, 8, method, settings=SMALL_AND_NO_NORM)
    loud = [images for images in BATCHES if len(sometimes(images))]
    assert 0 < len(loud) < len(BATCHES) and quantized.get_submodule("mask.0").codes is not None
    expected, given = sometimes(loud[0]), quantized(loud[0])
    assert expected.shape == given.shape and (given - expected).square().sum() < 0.01 * expected.square().sum()

    never = bitsplit.quantize(Detects(1e9), BATCHES, 4, 8, method, settings=SMALL_AND_NO_NORM)
    assert isinstance(never.get_submodule("mask.0"), nn.Linear)
    assert never.report.set_index("name").loc["mask.0", "note"]


@sequential
def test_regions_that_each_network_chooses_for_itself_are_not_paired(method):
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.head, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def regions(self, x):
            rows = self.middle(self.first(x).relu()).movedim(1, -1).flatten(0, 2)
            return rows[rows[:, 0].argsort(descending=True)[:100]]

        def forward(self, x):
            return self.last(self.head(self.regions(x)).relu())

    network = Regions()
    quantized = bitsplit.quantize(network, BATCHES, 3, 4, method, settings=SMALL_AND_NO_NORM)
    with torch.no_grad():
        regions = torch.cat([network.regions(images) for images in BATCHES])
        expected, given = network.head(regions), quantized.head(regions)
    assert (given - expected).square().sum() < 0.1 * (expected - expected.mean(dim=0)).square().sum()


def test_fewer_images_where_memory_is_short(network):
    settings = SMALL_AND_NO_NORM
    little = Settings(calibration=Calibration(memory_gb=1e-4), batch_norm=BatchNorm(mode="none"))
    every = bitsplit.quantize(network, BATCHES, 4, 4, "bitsplit_plus", settings=settings)
    few = bitsplit.quantize(network, BATCHES, 4, 4, "bitsplit_plus", settings=little)
    assert 0 < few.lockstep_images < every.lockstep_images == sum(map(len, BATCHES))
