"""What the documents tell a reader to type works: make's targets, run.py's keys, the examples in Python."""

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_documents import every_document

from bitsplit.networks.narrow import NarrowResNet
from bitsplit.tasks import task_of
from bitsplit.vision import torchvision

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Zk]+) \?=", MAKEFILE, re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
KEY = re.compile(r"(?P<key>[a-z_]+(?:[./][a-z_]+)*)=(?P<value>[^\s\"'{]*)")
RUN = re.compile(r"(?<!\()python run\.py\s*(.*)")


def commands(text: str) -> Iterator[str]:
    """The commands in blocks of shell and between backticks, without the comments behind them."""
    for block in SHELL.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def wrong_make(command: str) -> list[str]:
    """The words of `make …` that are neither a target nor a variable nor further arguments that run.py takes."""
    assignments = dict(word.split("=", 1) for word in words(command)[1:] if "=" in word)
    wrong = [word for word in words(command)[1:] if "=" not in word and word not in TARGETS]
    wrong += [name for name in assignments if name not in VARIABLES]
    launcher = [f"hydra/launcher={assignments['LAUNCHER']}"] if "LAUNCHER" in assignments else []
    return wrong + wrong_run([*launcher, *words(assignments.get("ARGS", ""))])


def wrong_run(arguments: list[str]) -> list[str]:
    """What Hydra says against the arguments of run.py, the first value of each sweep and every other one."""
    if "-sc" in arguments:
        return []
    overrides = [word for word in arguments if not word.startswith("-") and "<" not in word]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [text]
            for o, text in zip(parsed, overrides, strict=True)
        ]
        first = [values[0] for values in choices]
        for place, values in enumerate(choices):
            for value in values:
                composed(*first[:place], value, *first[place + 1 :])
    except HydraException as error:
        return [str(error)]
    return []


def keys_of(content: dict, prefix: str) -> set[str]:
    below = [keys_of(value, f"{prefix}{key}.") for key, value in content.items() if isinstance(value, dict)]
    return {f"{prefix}{key}" for key in content}.union(*below)


def keys_in(path: Path) -> set[str]:
    """The keys that a file of conf/ adds to the configuration."""
    group = path.parent.relative_to(ROOT / "conf")
    return keys_of(OmegaConf.to_container(OmegaConf.load(path)), "".join(f"{part}." for part in group.parts))


CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))
KEYS = set().union(*map(keys_in, CONFIGS))
CHOICES: dict[str, set[str]] = {"hydra/launcher": {"basic"}}
for path in CONFIGS:
    CHOICES.setdefault(path.parent.relative_to(ROOT / "conf").as_posix(), set()).add(path.stem)


def wrong_keys(command: str) -> list[str]:
    """`key=value` between backticks, where run.py has no such key, or the group no such choice."""
    if not (pair := KEY.fullmatch(command)):
        return []
    key, value = pair["key"], pair["value"]
    if key in CHOICES:
        return [f"{key}={name}" for name in value.split(",") if name and name not in CHOICES[key]]
    return [] if key in KEYS else [key]


def wrong_in(command: str) -> list[str]:
    wrong = wrong_keys(command)
    if command.startswith("make "):
        wrong += wrong_make(command)
    elif (run := RUN.search(command)) and "method=percentile" not in command:  # the example of docs/add_a_method.md
        wrong += wrong_run(words(run[1]))
    wrong += [extra for extra in re.findall(r"'\.\[(\w+)\]'", command) if extra not in EXTRAS]
    return wrong + [file for file in re.findall(r"experiments/\w+\.py", command) if not (ROOT / file).exists()]


@every_document
def test_commands_name_targets_and_keys_that_exist(path):
    parts = [part.strip() for line in commands(path.read_text()) for part in line.split("&&")]
    assert [wrong for part in parts for wrong in wrong_in(part)] == []


def test_the_readme_shows_the_main_commands():
    shown = "\n".join(SHELL.findall((ROOT / "README.md").read_text()))
    assert "make demo" in shown and "python run.py model=resnet18 wbits=4 abits=4" in shown
    assert "pip install -e ." in shown


@pytest.mark.parametrize(
    ("check", "command"),
    [
        (wrong_make, "make tabel4"),
        (wrong_make, "make table4 DATE=imagenet"),
        (wrong_make, 'make table4 ARGS="sed=1"'),
        (lambda command: wrong_run(words(command)), "model=resnet18 wbit=4"),
        (lambda command: wrong_run(words(command)), "-m method=bitsplit,no_such_method"),
        (wrong_keys, "batch_norm.mood=shift"),
        (wrong_keys, "data=imagenat"),
    ],
)
def test_a_wrong_command_is_found(check, command):
    assert len(check(command)) == 1


def test_the_examples_of_the_readme_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = NarrowResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, divisor=16).eval()
    gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    images = torch.rand(8, 3, 32, 32)
    namespace = {"model": model, "loader": [images] * 2, "images": images, "gram": gram, "cross": gram[:1]}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, namespace)
    bits = namespace["qmodel"].report.set_index("name")[["wbits", "abits"]]
    assert (bits.filter(like="layer4.", axis=0) == 8).all(axis=None)
    assert (bits.filter(like="layer2.", axis=0) == 4).all(axis=None)
    assert "at 4 bits" in capsys.readouterr().out and namespace["solution"].codes.shape == (1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"network.safetensors", "network.onnx"}


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """Loads the example in docs/add_a_method.md for one of conf's groups: (what the YAML file makes, its module)."""
    files = dict(EXAMPLE.findall((ROOT / "docs/add_a_method.md").read_text()))

    def load(group: str, **options):
        (name,) = (path for path in files if path.startswith(f"conf/{group}/"))
        config = OmegaConf.merge(OmegaConf.create(files[name]), options)
        module_name = config._target_.rpartition(".")[0]
        source = f"{module_name.replace('.', '/')}.py"
        assert not (ROOT / source).exists() and Path(name).stem == Path(source).stem
        (tmp_path / Path(source).name).write_text(files[source])
        spec = importlib.util.spec_from_file_location(module_name, tmp_path / Path(source).name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module_name, module)
        spec.loader.exec_module(module)
        return instantiate(config), module

    return load


def test_the_network_and_the_data_set_of_the_guide_work_together(guide, imagenet_root, tmp_path):
    weights = torchvision.models.get_model_weights("mobilenet_v2").IMAGENET1K_V1
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    source, module = guide("model", weights=str(path))
    assert weights.url == module.URL
    data, _ = guide("data", root=str(imagenet_root))
    task = task_of(source, data, torch.device("cpu"))
    assert task.title == "class_folders validation, 12 images"
    batches = list(task.calibration(batch_size=8, batches=2, seed=0))
    assert [images.shape for images, _ in batches] == [(8, 3, 224, 224)] * 2
    assert task.float_metrics["images"] == 12 and task.float_metrics["top1"] is not None
