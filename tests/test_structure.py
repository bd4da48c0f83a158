"""The rules of the house: floors, sizes and names, what the YAML files say, which dependencies are named."""

import ast
import collections
import dataclasses
import graphlib
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from conftest import ROOT, composed
from hydra.utils import get_class
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from bitsplit import methods
from bitsplit.settings import Settings

# The house from the ground up. A file imports from lower floors, or from its own.
FLOORS = (
    ("answers", "errors", "files", "kept", "grid", "layout", "progress", "settings", "vision"),
    ("solver",),
    ("layers",),
    ("statistics",),
    ("methods",),
    ("plan",),
    ("steps",),
    ("export",),
    ("ptq", "__init__"),
    ("data",),
    ("networks",),
    ("tasks",),
    ("report",),
    ("runs",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = ROOT / "bitsplit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [*SOURCES, ROOT / "run.py", *sorted((ROOT / "experiments").glob("*.py"))]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name in MODULES and name != "bitsplit"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_from_lower_floors_or_its_own(name):
    for other in imported_modules(MODULES[name]):
        same_package = room(name) == room(other)
        assert same_package or FLOOR[room(other)] <= FLOOR[room(name)], other


def test_no_imports_in_a_circle():
    graphlib.TopologicalSorter({name: imported_modules(path) - {name} for name, path in MODULES.items()}).prepare()


def test_the_ground_floor_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            documentation = node.body[0] if ast.get_docstring(node) is not None else None
            lines = documentation.end_lineno - documentation.lineno + 1 if documentation else 0
            assert node.end_lineno - node.lineno + 1 - lines <= 45, node.name


def test_public_names_are_unique():
    """But for the loops of the solver, which stand in two files under the same names on purpose."""
    places = collections.defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_") and name != "main":
                    places[name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


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
    cfg, settings = composed(), Settings()
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
