"""Damaged and foreign files of weights: the numbers in them, or one line that says what to do and nothing changed."""

import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import SMALL
from damages import damaged
from torch import nn

from bitsplit.errors import InputError, one_line
from bitsplit.networks import weights
from bitsplit.networks.network import Network
from bitsplit.networks.weights import download, load_weights, weights_digest

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, when it makes unusual tensors
KEY = "2.weight"


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)).train()


VALUES = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
STATE = small().state_dict() | {KEY: VALUES}
HUGE = torch.cat([VALUES.flatten(), torch.zeros(10**6)])


class Subclass(torch.Tensor):
    pass


def refused(path: Path, *words: str) -> None:
    """Asserts that one line with these words refuses the file and that the network stays as it was."""
    module = small()
    with pytest.raises(InputError) as caught:
        load_weights("small", module, path)
    message = one_line(caught.value)
    assert message == str(caught.value) and all(word in message for word in (str(path), *words)), message
    assert module.training
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in small().state_dict().items())


def saved(state: object, path: Path, **options) -> Path:
    torch.save(state, path, **options)
    return path


LOADED = {
    "float16": VALUES.half(),
    "bfloat16": VALUES.bfloat16(),
    "float64": VALUES.double(),
    "view of a huge storage": HUGE[:32].view(4, 8),
    "transposed": VALUES.T.contiguous().T,
    "expanded": VALUES[:, :1].expand(4, 8),
    "negated view": torch.complex(VALUES, -VALUES).conj().imag,
    "parameter": nn.Parameter(VALUES),
    "buffer": nn.Buffer(VALUES.clone()),
}
NOT_DENSE = {
    "sparse": lambda: VALUES.to_sparse(),
    "sparse rows": lambda: VALUES.to_sparse_csr(),
    "meta": lambda: VALUES.to("meta"),
    "quantized": lambda: torch.quantize_per_tensor(VALUES, 0.1, 0, torch.qint8),
    "quantized by row": lambda: torch.quantize_per_channel(VALUES, torch.ones(4), torch.zeros(4), 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor(list(VALUES)),
    "jagged": lambda: torch.nested.nested_tensor(list(VALUES), layout=torch.jagged),
}
NOT_FLOAT = [
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.bool, torch.complex64, torch.complex32),
    *(torch.int8, torch.uint8, torch.uint16, torch.int32, torch.int64),
]


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("kind", LOADED)
def test_numbers_that_are_there_are_loaded(tmp_path, kind, wrap):
    path = saved(wrap(STATE | {KEY: LOADED[kind]}), tmp_path / "w.pth")
    state = load_weights("small", small(), path).state_dict()
    assert state[KEY].dtype == torch.float32 and torch.equal(state[KEY], LOADED[kind].float())
    assert all(torch.equal(state[key], value) for key, value in STATE.items() if key != KEY)


@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_without_plain_values_are_refused(tmp_path, kind):
    refused(saved(STATE | {KEY: NOT_DENSE[kind]()}, tmp_path / "w.pth"), KEY, "dense")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", NOT_FLOAT)
def test_other_types_than_the_networks_are_refused(tmp_path, dtype, suffix):
    path, state = tmp_path / f"w{suffix}", STATE | {KEY: VALUES.to(dtype)}
    if dtype == torch.complex32 and suffix == ".safetensors":
        pytest.skip("safetensors has no such type")
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, path)
    refused(path, KEY, str(dtype), "torch.float32", "model.float()")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int32, torch.bool])
def test_a_counter_that_is_no_integer_is_refused(tmp_path, dtype):
    counter = "1.num_batches_tracked"
    refused(saved(STATE | {counter: torch.tensor(1, dtype=dtype)}, tmp_path / "w.pth"), counter, "torch.int64")


@pytest.mark.parametrize("value", [float("nan"), 1e60])
def test_what_is_not_finite_in_float32_is_refused(tmp_path, value):
    refused(saved(STATE | {KEY: VALUES.double() * value}, tmp_path / "w.pth"), KEY, "NaN or infinity")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, ["must map parameter names to tensors"]),
        (VALUES, ["must map parameter names to tensors"]),
        ({1: VALUES}, ["1 is a Tensor", "state_dict()"]),
        (STATE | {("a", 2): VALUES}, ["('a', 2) is a Tensor"]),
        (STATE | {b"a": VALUES}, ["b'a' is a Tensor"]),
        (STATE | {KEY: None}, [KEY, "NoneType"]),
        (STATE | {KEY: [1.0, 2.0]}, [KEY, "list"]),
        (STATE | {KEY: {"a": VALUES}}, [KEY, "dict"]),
        ({"model": STATE}, ["'model' is a"]),
        ({"state_dict": {"state_dict": STATE}}, ["'state_dict' is a"]),
        (STATE | {KEY: VALUES.as_subclass(Subclass)}, ["nothing but tensors"]),
        (STATE | {KEY: VALUES.numpy()}, ["nothing but tensors"]),
        (small(), ["nothing but tensors"]),
        (STATE | {KEY: torch.tensor(1.0)}, ["another network", KEY]),
        (STATE | {KEY: VALUES[:0]}, ["another network", KEY]),
        (STATE | {"3.weight": VALUES}, ["another network", "3.weight"]),
        ({key: value for key, value in STATE.items() if key != KEY}, ["another network", KEY]),
    ],
)
def test_what_is_no_state_dict_of_the_network_is_refused(tmp_path, state, words):
    refused(saved(state, tmp_path / "w.pth"), *words)


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    refused(saved(STATE | {KEY: Program()}, tmp_path / "zipped.pth"), "nothing but tensors")
    refused(saved(Program(), tmp_path / "old.pth", _use_new_zipfile_serialization=False), "nothing but tensors")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Program()))
    refused(tmp_path / "bare.pth", "nothing but tensors")
    torch.jit.save(torch.jit.script(small()), tmp_path / "scripted.pth")
    refused(tmp_path / "scripted.pth", "nothing but tensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["nowhere.pth", "x" * 300 + ".pth", "a\0b.pth", "/dev/null", "/"])
def test_what_is_no_file_is_refused(path):
    for ask in (weights_digest, lambda path: load_weights("small", small(), path)):
        with pytest.raises(InputError, match="is not a file"):
            ask(Path(path))


@pytest.mark.parametrize("form", ["zipped.pth", "old.pth", "tensors.safetensors"])
def test_damaged_weights_are_refused_or_other_weights(tmp_path, form):
    """Of the three forms only the zipped one has checksums, so that no damage to a number passes; in the others it may,
    and the weights then count as others."""
    whole = tmp_path / form
    if form == "tensors.safetensors":
        safetensors.torch.save_file(STATE, whole)
    else:
        saved(STATE, whole, _use_new_zipfile_serialization=form == "zipped.pth")
    content, identity = whole.read_bytes(), Network("small", small, whole, None).identity
    for seed in range(100):
        path = tmp_path / f"{seed}" / form
        path.parent.mkdir()
        path.write_bytes(damaged(content, random.Random(seed)))
        network = Network("small", small, path, None)
        assert network.identity != identity and network.identity["weights"] == form
        try:
            state = network.module.state_dict()
        except InputError as error:
            assert str(path) in str(error) and one_line(error) == str(error)
            refused(path)
        else:
            same = all(torch.equal(state[key], value) for key, value in STATE.items())
            assert same or form != "zipped.pth"


def test_a_zip_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(STATE, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_weights("small", small(), path).state_dict()[KEY], VALUES)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Address of weights that lie in torch's hub folder already, and the file there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = saved(STATE, tmp_path / "w.pth")
    place = tmp_path / "hub" / "checkpoints" / f"small-{weights_digest(path)[:8]}.pth"
    place.parent.mkdir(parents=True)
    return f"https://nowhere.invalid/{path.rename(place).name}", place


def test_published_weights_are_checked_once_a_process(published):
    url, path = published
    read = weights._digest.cache_info().misses
    for _ in range(3):
        assert download(url) == path
        assert Network("small", small, path, None).sha256.startswith(path.stem.rpartition("-")[2])
    assert weights._digest.cache_info().misses == read + 1


def test_damaged_published_weights_are_refused_and_left_there(published):
    url, path = published
    content = path.read_bytes()
    for seed in range(100):
        path.write_bytes(damaged(content, random.Random(seed)))
        os.utime(path, (seed, seed))
        there = path.read_bytes()
        with pytest.raises(InputError) as caught:
            download(url)
        assert str(path) in str(caught.value) and "remove it" in str(caught.value)
        assert path.read_bytes() == there
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="remove it"):
        download(url)


def test_whole_commands_say_it_in_one_line(command, tmp_path, imagenet_root):
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half a download")
    saved(STATE | {KEY: NOT_DENSE["quantized"]()}, tmp_path / "quantized.pth")
    for arguments, word in (
        (["data=imagenet", f"data.root={imagenet_root}", *SMALL], str(place)),
        (["data=glyphs", f"model.weights={tmp_path / 'quantized.pth'}"], KEY),
    ):
        done = command(*arguments, TORCH_HOME=str(tmp_path))
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert word in done.stderr and not (tmp_path / "results").exists()
