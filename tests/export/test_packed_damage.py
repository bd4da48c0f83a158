"""Files that are no intact quantized network of the model given: each refused in one line, and nothing changed."""

import copy
import json
import pickle
import random

import pytest
import safetensors.torch
import torch
from damages import damaged
from small_networks import BATCHES, SMALL, Levels, Residual, lively
from torch import nn

import bitsplit
from bitsplit.export.packed.sealed import read_sealed, write_sealed


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Content of an intact file of `Residual`, with bits by channel."""
    path = tmp_path_factory.mktemp("good") / "network.safetensors"
    network = lively(Residual())
    with torch.no_grad():
        network.wide.weight[0] *= 5
    bitsplit.save(bitsplit.quantize(network, BATCHES, 4, 4, "aciq_mix", settings=SMALL), path)
    return path.read_bytes()


class Trap:
    """Ends the process of whoever unpickles it."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


def refused(path, says=".", model=None):
    """The one line with which the file is refused; the model is as it was."""
    model = lively(Residual(1)) if model is None else model
    before, names = copy.deepcopy(model.state_dict()), set(vars(model))
    with pytest.raises(bitsplit.InputError, match=says) as error:
        bitsplit.load(path, model)
    assert "\n" not in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 500
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert set(vars(model)) == names


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\0"),
    "text": lambda path: path.write_text("# a network\n", encoding="utf-8"),
    "zeros": lambda path: path.write_bytes(bytes(100_000)),
    "json": lambda path: path.write_text(json.dumps({"bitsplit": {"format": 1}}), encoding="utf-8"),
    "weights": lambda path: safetensors.torch.save_file(Residual().state_dict(), path),
    "tensors of others with metadata": lambda path: safetensors.torch.save_file(
        {"a": torch.ones(2)}, path, {"format": "pt"}
    ),
    "a state dict": lambda path: torch.save(Residual().state_dict(), path),
    "a pickled module": lambda path: torch.save(Residual(), path),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Trap())),
    "torch's file with code": lambda path: torch.save(Trap(), path),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(name, tmp_path):
    path = tmp_path / "network.safetensors"
    FOREIGN[name](path)
    refused(path, "bitsplit.save")


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "nothing", "cannot be read .No such file")


# Whole files with a right checksum, made by somebody else


def change(**facts):
    return lambda old, tensors: old.update(facts)


def drop(key):
    return lambda facts, tensors: tensors.pop(key)


def replace(key, make):
    return lambda facts, tensors: tensors.update({key: make(tensors[key])})


def poison(key, value):
    def change(facts, tensors):
        tensors[key].view(-1)[0] = value

    return change


def in_layer(key, value):
    return lambda facts, tensors: facts["layers"]["wide"].update({key: value})


def in_input(key, value):
    return lambda facts, tensors: facts["layers"]["wide"]["inputs"][0].update({key: value})


WRONG = {
    "codes missing": (drop("wide.weight_packed"), "wide.weight_packed is missing"),
    "scale missing": (drop("wide.weight_scale"), "wide.weight_scale is missing"),
    "shape missing": (drop("wide.weight_shape"), "wide.weight_shape is missing"),
    "input scale missing": (drop("wide.input_scale"), "wide.input_scale is missing"),
    "input bits missing": (drop("wide.input_bits"), "wide.input_bits is missing"),
    "bias missing": (drop("wide.bias"), "wide.bias is missing"),
    "statistics missing": (drop("stem_norm.running_var"), "stem_norm.running_var is missing"),
    "codes cut": (replace("wide.weight_packed", lambda t: t[:-1].clone()), "bytes of codes"),
    "codes of another type": (
        replace("wide.weight_packed", lambda t: t.to(torch.int32)),
        "weight_packed is torch.int32",
    ),
    "scale of another type": (replace("wide.weight_scale", lambda t: t.double()), "weight_scale is torch.float64"),
    "scale of another shape": (replace("wide.weight_scale", lambda t: t[:-1].clone()), "weight_scale"),
    "shape of another layer": (replace("wide.weight_shape", lambda t: t + 1), "weight_shape"),
    "bias of another shape": (replace("wide.bias", lambda t: t[:-1].clone()), "wide.bias"),
    "bias of another type": (replace("wide.bias", lambda t: t.half()), "wide.bias"),
    "input scale of another shape": (replace("wide.input_scale", lambda t: t.flatten()), "wide.input_scale"),
    "NaN in a scale": (poison("wide.weight_scale", float("nan")), "wide.weight_scale holds NaN"),
    "infinity in an offset": (poison("wide.weight_offset", float("inf")), "wide.weight_offset holds NaN"),
    "NaN in an input scale": (poison("wide.input_scale", float("nan")), "wide.input_scale holds NaN"),
    "bits by channel too many": (poison("wide.weight_bits", 9), "weight_bits"),
    "input bits too many": (poison("wide.input_bits", 9.0), "input_bits"),
    "input bits in halves": (poison("wide.input_bits", 1.5), "input_bits"),
    "a tensor too many": (lambda facts, tensors: tensors.update(more=torch.ones(1)), "more is in it"),
    "wbits that there are not": (in_layer("wbits", 9), "wbits"),
    "wbits as text": (in_layer("wbits", "4"), "wbits"),
    "no calls": (in_layer("inputs", None), "no intact"),
    "abits that there are not": (in_input("bits", 1), "abits"),
    "a layer that is not there": (lambda facts, tensors: facts["layers"].update(nowhere={}), "nowhere"),
    "no layers": (change(layers=None), "no intact"),
    "no report": (change(report=None), "no intact"),
    "a report of texts": (change(report=["row"]), "no intact"),
    "no configuration": (lambda facts, tensors: facts.pop("configuration"), "configuration"),
    "no seconds": (change(seconds=3), "no intact"),
    "another architecture": (change(architecture="0" * 64), "another architecture"),
    "no architecture": (lambda facts, tensors: facts.pop("architecture"), "another architecture"),
    "a later format": (change(format=2), "has format 2, and this bitsplit reads up to 1; install a newer one"),
    "a format without number": (change(format="new"), "damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_whole_and_wrong(name, good, tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(good)
    facts, tensors = read_sealed(path)
    change, says = WRONG[name]
    change(facts, tensors)
    del facts["sha256"]
    write_sealed(path, tensors, facts)
    refused(path, says)


OTHERS = {
    "another network": (Levels, "stem.weight is"),
    "more classes": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), "0.weight is not in the file"),
    "another stride": (lambda: altered("down", stride=(1, 1)), "strides"),
    "another padding": (lambda: altered("wide", padding=(1, 1)), "strides"),
    "another epsilon": (lambda: altered("stem_norm", eps=1e-3), "strides"),
    "double precision": (lambda: Residual().double(), "number types"),
}


def altered(name, **attributes):
    network = Residual()
    vars(network.get_submodule(name)).update(attributes)
    return network


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name, good, tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(good)
    model, says = OTHERS[name]
    refused(path, f"another architecture.*{says}.*give the floating-point network", model())


def test_a_quantized_network_is_no_architecture(good, tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(good)
    with pytest.raises(bitsplit.InputError, match="quantized already"):
        bitsplit.load(path, bitsplit.load(path, Residual()))


# Damage by chance


def test_bits_that_flip_anywhere(good, tmp_path):
    chance, path, model = random.Random(0), tmp_path / "network.safetensors", lively(Residual(1))
    header = int.from_bytes(good[:8], "little")
    places = [chance.randrange(len(good)) for _ in range(100)]
    places += [chance.randrange(8 + header) for _ in range(100)] + list(range(120))
    for place in places:
        content = bytearray(good)
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        refused(path, model=model)


def test_files_that_end_too_early(good, tmp_path):
    path, model = tmp_path / "network.safetensors", lively(Residual(1))
    for length in [*range(0, 130, 10), *range(200, len(good), len(good) // 20), len(good) - 1]:
        path.write_bytes(good[:length])
        refused(path, model=model)


def test_other_damage(good, tmp_path):
    chance, path, model = random.Random(1), tmp_path / "network.safetensors", lively(Residual(1))
    for _ in range(60):
        path.write_bytes(damaged(good, chance))
        refused(path, model=model)
    for content in (good + b"\0", good[:8] + good, b"\xff" * 8 + good[8:]):
        path.write_bytes(content)
        refused(path, model=model)
