"""What `train.py --dry-run` says: the plan of a run, and what is missing before it can start.

Nothing is downloaded, and no weights of a large backbone are loaded.  What is missing is stood in for: data by its
declared sizes or by the bundled photographs, a backbone by its skeleton.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lucidnft.backbones.quantization import PACKAGES as QUANTIZERS
from lucidnft.backbones.speed import INSTALLS
from lucidnft.checkpoint.required_files import describe_required, format_size, missing_files, required_files
from lucidnft.rewards import RewardSuite
from lucidnft.schema import ConfigModel
from lucidnft.training.nft_plan import plan_nft, planned_backbone
from lucidnft.training.plan import check_can_learn

SHIPPED = ("tiny", "empty")
PACKAGES = {
    "iqa": ("pyiqa", "iqa"),
    "full_reference": ("pyiqa", "iqa"),
    "clip_similarity": ("open_clip", "clip"),
    "clip_text": ("open_clip", "clip"),
    "open_clip": ("open_clip", "clip"),
}
"""What the type of a reward or an embedder imports, and the extra that installs it."""


def missing_things(config: Any) -> list[str]:
    """What a run needs and this machine lacks, each with its setting: weights, folders of images, packages."""
    return [*missing_weights(config), *missing_folders(config), *missing_packages(config)]


def missing_weights(config: Any) -> list[str]:
    """Files and cached repositories of weights that are not here, or not whole."""
    return [
        f"{file.setting}: {file.file} of {file.source} ({format_size(file.size)}), expected in {file.place}"
        for file in missing_files(config)
    ]


def missing_folders(config: Any) -> list[str]:
    """Folders of images that are not here."""
    return [
        f"{path}.{name}: no folder '{folder}'"
        for path, section in _sections(config)
        for name, folder in _image_folders(section)
        if not Path(folder).expanduser().is_dir()
    ]


def missing_packages(config: Any) -> list[str]:
    """Optional packages that a reward, an embedder or a setting of the model needs."""
    lines = []
    for path, section in _sections(config):
        package, extra = PACKAGES.get(getattr(section, "type", ""), ("", ""))
        if package and find_spec(package) is None:
            lines.append(f"{path}: package {package}; run: pip install 'lucidnft[{extra}]'")
    model = getattr(config, "model", None)
    package = QUANTIZERS.get(getattr(model, "quantize", "none"), "")
    if package and find_spec(package) is None:
        lines.append(f"model.quantize: package {package}; run: pip install 'lucidnft[quantize]'")
    package, install = INSTALLS.get(getattr(model, "attention_backend", "sdpa"), ("", ""))
    if package and find_spec(package) is None:
        lines.append(f"model.attention_backend: package {package}; run: {install}")
    return lines


def summary(missing: list[str]) -> str:
    """The last lines of a dry run."""
    if not missing:
        return "dry run: nothing is missing, the run can start"
    listed = "".join(f"  {line}\n" for line in missing)
    return f"missing:\n{listed}dry run: {len(missing)} thing(s) missing before this run can start"


def begin(config: Any, resolved: str, accelerator: Accelerator) -> Any | None:
    """Print the resolved settings, the weight files, and the plan of a run that is not prepared for it.

    Returns the run to prepare for the rest of the plan, with stand-ins for what is missing; None when all is said.

    Raises:
        ValueError: settings with which the run would be refused.
    """
    files = required_files(config)
    listed = f"weight files:\n{describe_required(files)}" if files else ""
    accelerator.print(resolved, *([listed] if listed else []), sep="\n")
    missing = missing_things(config)
    if config.task == "nft" and (missing or not loads_little(config)):
        text = describe_nft(config, accelerator)
    elif needs_its_embedder(config):
        text = (
            "plan: not known; with data.dimension, the width of the embeddings, no embedder is loaded to ask"
        )
    else:
        return stand_in(config) if missing else config
    accelerator.print(text)
    end(config, accelerator)
    return None


def end(config: Any, accelerator: Accelerator) -> None:
    """Print what is missing, the last lines of a dry run."""
    accelerator.print(summary(missing_things(config)))


def needs_its_embedder(config: Any) -> bool:
    """Whether even a plan of task consistency would load an embedder that does not ship."""
    embedder = getattr(config.data, "embedder", None)
    return embedder is not None and embedder.type != "tiny" and config.data.dimension is None


def loads_little(config: Any) -> bool:
    """Whether preparing the whole run is cheap and offline: a backbone and rewards that ship."""
    model = getattr(config, "model", None)
    small = model is None or getattr(model, "type", None) not in ("lucidflux", "dit4sr")
    return small and all(_is_light(reward) for reward in getattr(config, "rewards", {}).values())


def describe_nft(config: Any, accelerator: Accelerator) -> str:
    """Data where it is, batch plan and memory of a run of task nft, without its backbone.

    Raises:
        ValueError: settings with which the run could not learn or would be refused.
    """
    rewards = config.rewards
    check_can_learn(
        config.rollout,
        config.train,
        [reward.weight for reward in rewards.values()],
        num_processes=accelerator.num_processes,
    )
    backbone = planned_backbone(config, accelerator.device)
    data = None if missing_folders(config) else config.data.build(config.seed, backbone.upscale or 4)
    lacking = {line.split(":")[0] for line in (*missing_weights(config), *missing_packages(config))}
    built = {
        name: reward.build()
        for name, reward in rewards.items()
        if _is_light(reward) and not any(f"{path}.".startswith(f"rewards.{name}.") for path in lacking)
    }
    if built and data is not None:
        RewardSuite(built).check_needs(data.train.provides, data.train.name)
    if len(built) == len(rewards):
        RewardSuite(built).check_places(config.train.advantage_cell)
    device, processes = accelerator.device, accelerator.num_processes
    plan = plan_nft(config, backbone, data, built, device=device, num_processes=processes)
    described = "not there; the plan is for the declared sizes" if data is None else data.train.describe()
    warning = "" if plan.problem is None else f"\non this machine it does not fit: {plan.problem}"
    return f"data:\n{described}\n{plan.text}{warning}"


def stand_in(config: Any) -> Any:
    """The run with the bundled photographs for folders that are not here, and fresh networks for weights."""
    sections = {name: getattr(config, name) for name in ("model", "data") if hasattr(config, name)}
    return config.model_copy(update={name: _stood_in(section) for name, section in sections.items()})


def _stood_in(section: ConfigModel) -> ConfigModel:
    update: dict[str, Any] = {}
    folders = dict(_image_folders(section))
    if any(not Path(folder).expanduser().is_dir() for folder in folders.values()):
        update |= {name: () if name == "restored_folders" else None for name in _folder_fields(section)}
    for name in ("head", "weights", "model_name_or_path"):
        value = getattr(section, name, None)
        if isinstance(value, str) and value not in SHIPPED and not Path(value).expanduser().exists():
            update[name] = None
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, ConfigModel) and name != "embedder":  # a plan loads none that does not ship
            update[name] = _stood_in(value)
    return section.model_copy(update=update)


def _is_light(reward: Any) -> bool:
    """Whether building it loads no more than what ships with this package."""
    kind = getattr(reward, "type", None)
    embedder = getattr(getattr(reward, "embedder", None), "type", "tiny")
    outsider = type(reward).__module__.partition(".")[0] != "lucidnft"
    return outsider or (kind in ("lr_fidelity", "quality_net", "lucid_consistency") and embedder == "tiny")


def _sections(config: Any) -> Iterator[tuple[str, Any]]:
    """(path, section) of the sections that name weights, data or packages, and those inside them."""
    for name in ("model", "data"):
        if hasattr(config, name):
            yield from _with_inner(name, getattr(config, name))
    for name, reward in getattr(config, "rewards", {}).items():
        yield from _with_inner(f"rewards.{name}", reward)


def _with_inner(path: str, section: Any) -> Iterator[tuple[str, Any]]:
    yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, ConfigModel):
            yield from _with_inner(f"{path}.{name}", value)


def _folder_fields(section: ConfigModel) -> list[str]:
    """Names of the settings that say where images are."""
    fields = type(section).model_fields
    return [name for name in fields if name.endswith(("folder", "folders")) and "cache" not in name]


def _image_folders(section: ConfigModel) -> Iterator[tuple[str, str]]:
    for name in _folder_fields(section):
        value = getattr(section, name)
        for folder in (value,) if isinstance(value, str) else value or ():
            yield name, folder
