"""What is installed is whole: modules, configs, layers, weights in the wheel, versions, light imports."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lucidnft
from lucidnft.config import load_config

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / "configs").rglob("*.yaml")
    if path.parent.name != "eval"  # tests/evaluation/test_settings.py
)
MODULES = sorted(m.name for m in pkgutil.walk_packages(lucidnft.__path__, "lucidnft."))
HEAVY = ("diffusers", "transformers", "pyiqa", "open_clip", "peft", "xformers", "accelerate")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_modules_and_configs_are_found():
    assert len(MODULES) >= 40
    assert CONFIGS == [
        "configs/dit4sr/nft.yaml",
        "configs/dit4sr/nft_24gb.yaml",
        "configs/lucidflux/consistency.yaml",
        "configs/lucidflux/nft.yaml",
        "configs/lucidflux/nft_24gb.yaml",
        "configs/lucidflux/nft_8gpu.yaml",
        "configs/tiny/consistency.yaml",
        "configs/tiny/consistency_embedder.yaml",
        "configs/tiny/flow_matching.yaml",
        "configs/tiny/nft.yaml",
        "configs/tiny/nft_paired.yaml",
        "configs/tiny/quality.yaml",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    importlib.import_module(name)


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_loads_and_names_its_task_after_its_file(path):
    config = load_config(REPOSITORY / path)
    assert Path(path).stem.startswith(config.task)


def loaded_heavy_packages(code: str) -> list[str]:
    code += f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "module", ["lucidnft.config", "lucidnft.rewards", "lucidnft.metric_logger", "lucidnft.data"]
)
def test_importing_settings_loads_no_heavy_package(module):
    assert loaded_heavy_packages(f"import {module}") == []


def test_saying_what_a_run_needs_loads_no_heavy_package():
    code = (
        "from lucidnft.config import load_config; from lucidnft.checkpoint.required_files import missing_files; "
        "missing_files(load_config('configs/tiny/nft.yaml', ['model={type: lucidflux}']))"
    )
    assert loaded_heavy_packages(code) == []


def test_console_scripts_are_there():
    for place in PROJECT["project"]["scripts"].values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_import_guard_can_fail():
    assert loaded_heavy_packages("import peft.utils.peft_types as _") != []


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_imports_go_one_way():
    done = lint_imports(REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("flow/conversions.py", "import lucidnft.policy", "lower never imports higher BROKEN"),
        ("losses/nft.py", "import lucidnft.rewards.base", "losses and advantages are pure torch BROKEN"),
        ("data/folders.py", "import peft", "only backbones reaches diffusers and peft BROKEN"),
        (
            "policy.py",
            "def f():\n    import accelerate",
            "accelerate stops at training, evaluation and sample BROKEN",
        ),
        ("stray.py", "", "stray"),
    ],
)
def test_the_layer_guard_can_fail(tmp_path, module, line, contract):
    shutil.copytree(
        REPOSITORY / "lucidnft", tmp_path / "lucidnft", ignore=shutil.ignore_patterns("*.safetensors")
    )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with open(tmp_path / "lucidnft" / module, "a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert contract in " ".join((done.stdout + done.stderr).split())


def test_the_wheel_holds_every_module_and_the_weights(tmp_path):
    assets = [path.name for path in (REPOSITORY / "lucidnft" / "assets").iterdir() if path.is_file()]
    assert any(name.endswith(".safetensors") for name in assets)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(
        REPOSITORY / "lucidnft", source / "lucidnft", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = tmp_path / f"lucidnft-{lucidnft.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"lucidnft/assets/{name}" for name in assets} <= names
    files = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "lucidnft").rglob("*.py")}
    assert files | {"lucidnft/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "configs"))]


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_the_pinned_versions_lie_in_the_declared_ranges():
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    declared += [Requirement(text) for extra, texts in extras.items() if extra != "all" for text in texts]
    assert len(declared) >= 25
    for requirement in declared:
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier, f"{name} has no range"
        assert requirement.specifier.contains(pins()[name]), (
            f"{name} {pins()[name]} is not in {requirement.specifier}"
        )


def test_all_is_every_extra_a_user_may_want():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert Requirement(everything).extras == extras.keys() - {"all", "dev"}
