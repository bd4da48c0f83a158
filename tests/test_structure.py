"""The house rules: who may import whom, what the YAML files say, which dependencies are named."""

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, composed
from hydra.utils import get_class

from bitsplit import config, methods

# Each room and the rooms of the package that it may import; `errors` is open to all.
ROOMS = {
    "__init__": set(),
    "errors": set(),
    "progress": set(),
    "vision": set(),
    "config": set(),
    "grid": set(),
    "capture": set(),
    "layout": set(),
    "kernels": set(),
    "search_kernels": {"kernels"},
    "stats": {"capture", "layout", "progress"},
    "objective": set(),
    "descent": set(),
    "lattice": {"descent", "grid", "kernels", "objective", "search_kernels"},
    "solver": {"descent", "grid", "kernels", "lattice", "objective"},
    "layers": {"grid", "kernels", "layout", "progress"},
    "methods": {"grid", "methods", "progress", "solver", "stats"},
    "calibration": {"stats"},
    "narrow": {"vision"},
    "ptq": {"calibration", "config", "layers", "layout", "methods", "progress", "solver", "stats"},
    "api": {"config", "methods", "ptq"},
    "data": {"cache", "data", "vision"},
    "models": {"data", "narrow", "vision"},
    "detectors": {"config", "models", "narrow_detectors", "vision"},
    "narrow_detectors": set(),
    "tasks": {"config", "data", "detectors", "models", "progress"},
    "record": {"cache"},
    "cache": set(),
    "statistics_cache": {"cache", "capture", "layout", "stats"},
    "cell": {"cache", "statistics_cache", "config", "methods", "ptq", "record", "stats", "tasks"},
    "report": {"record", "report"},
    "sweep": {"cell", "record"},
    "tracking": {"record", "report"},
}
SOURCES = sorted((ROOT / "bitsplit").rglob("*.py"))


def imported_rooms(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("bitsplit.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    room = path.relative_to(ROOT / "bitsplit").parts[0].removesuffix(".py")
    assert imported_rooms(path) <= ROOMS[room] | {"errors"}


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "run.py"], ids=lambda path: path.name)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, bitsplit; print({'torch', 'hydra', 'wandb', 'mmdet', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "choice",
    [f"{path.parent.name}={path.stem}" for path in sorted((ROOT / "conf").glob("*/*.yaml"))],
)
def test_every_config_composes(choice):
    cfg = composed(choice)
    for group in ("model", "data", "method"):
        assert cfg[group]._target_.startswith("bitsplit.")


@pytest.mark.parametrize("name", methods.names())
def test_yaml_defaults_are_the_methods_defaults(name):
    cfg = composed(f"method={name}").method
    method_class = get_class(cfg._target_)
    fields = {field.name: field.default for field in dataclasses.fields(method_class)}
    assert {key: value for key, value in cfg.items() if key != "_target_"} == fields
    assert isinstance(methods.named(name), method_class) and methods.named(name).name == name


def test_yaml_defaults_are_the_settings_defaults():
    cfg, settings = composed(), config.Settings()
    assert dict(cfg.bits) | {"wbits": cfg.wbits, "abits": cfg.abits} == dataclasses.asdict(settings.bits)
    assert dict(cfg.calibration) == dataclasses.asdict(settings.calibration)
    assert dict(cfg.batch_norm) == dataclasses.asdict(settings.batch_norm)
    assert cfg.seed == settings.seed


def test_every_experiment_opens_with_its_header():
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        head = path.read_text().split("hydra:")[0]
        assert all(f"# {key}:" in head for key in ("Command", "Data", "Expected")), path


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", line).group().lower().replace("_", "-") for line in requirements}


def test_dependencies_agree_and_are_justified():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = names_of(project["dependencies"]) | names_of(project["optional-dependencies"]["dev"])
    locked = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert direct <= names_of(locked)
    assert all("==" in line for line in locked)
    environment = (ROOT / "environment.yml").read_text()
    assert "requirements.lock" in environment
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if re.match(r'\s+"[\w-]+[>=]=', line):
            assert "#" in line, f"no reason given: {line}"
