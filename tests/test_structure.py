"""The house rules: who may import whom, what the YAML files say, which dependencies are named."""

import ast
import dataclasses
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError

import pytest
from conftest import ROOT, composed
from hydra.utils import get_class
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

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
    "stats": {"capture", "layout", "objective", "progress"},
    "objective": set(),
    "descent": set(),
    "lattice": {"descent", "grid", "kernels", "objective", "search_kernels"},
    "solver": {"descent", "grid", "kernels", "lattice", "objective"},
    "layers": {"grid", "kernels", "layout", "progress"},
    "methods": {"grid", "methods", "progress", "solver", "stats"},
    "calibration": {"stats"},
    "narrow": {"vision"},
    "ptq": {"calibration", "config", "layers", "layout", "methods", "objective", "progress", "stats"},
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


def names_of(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVELOPMENT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]  # what `make setup` installs
LOCKED = (ROOT / "requirements.lock").read_text().splitlines()


def test_the_lock_pins_the_direct_dependencies_within_their_bounds():
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LOCKED)}
    assert all(pins.values()) and len(pins) == len(LOCKED)
    for requirement in map(Requirement, DEVELOPMENT):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_lock_holds_nothing_that_no_dependency_needs():
    needed, left = {"setuptools"}, names_of(DEVELOPMENT)  # setuptools builds the package
    while left:
        name = left.pop()
        needed.add(name)
        with suppress(PackageNotFoundError):  # of another platform
            given = map(Requirement, metadata.requires(name) or [])
            # The extras of dependencies are few, and their packages known by name where they are installed.
            left |= {
                canonicalize_name(r.name) for r in given if not r.marker or r.marker.evaluate({"extra": ""})
            } - needed
    assert names_of(LOCKED) <= needed


def test_conda_installs_python_and_the_lock_alone():
    python, pip, packages = OmegaConf.load(ROOT / "environment.yml")["dependencies"]
    name, _, version = python.partition("=")
    assert (name, pip) == ("python", "pip")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert packages["pip"] == ["--requirement requirements.lock", "--editable ."]


def test_what_is_imported_is_a_direct_dependency():
    sources = [*SOURCES, ROOT / "run.py", *(ROOT / "experiments").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    imported = set()
    for node in (node for path in sources for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    packages = metadata.packages_distributions()
    third_party = {name for module in imported - sys.stdlib_module_names for name in packages.get(module, [])}
    optional = itertools.chain(*PROJECT["optional-dependencies"].values())
    assert {canonicalize_name(name) for name in third_party} <= names_of(
        [*PROJECT["dependencies"], *optional, "bitsplit"]
    )


@pytest.mark.parametrize(
    ("file", "dependency"),
    [("pyproject.toml", r'\s+"[\w-]+(\[\w+\])?[>=]='), ("environment.yml", r"\s*- (?!pip:)(python|pip|--)")],
)
def test_every_dependency_has_its_reason(file, dependency):
    named = [line for line in (ROOT / file).read_text().splitlines() if re.match(dependency, line)]
    assert named and [line for line in named if "  # " not in line] == []


def test_the_detection_lock_goes_on_top_of_the_main_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "requirements-detection.lock").read_text().split()
    assert all("==" in pin for pin in pins)
    assert names_of(project["optional-dependencies"]["detection"]) <= names_of(pins)
    assert not names_of(pins) & names_of((ROOT / "requirements.lock").read_text().split())
