"""Names of an adapter's layers in a PEFT folder, and in our networks.

The LucidNFT release has one folder for the trunk, `lora_dit`, and for LucidFlux one for the conditioner,
`lora_condition`.  Under "release" names they belong to its own FLUX, whose queries, keys and values are one matrix
(with the first layer of the MLP in single blocks), and to the conditioner inside a wrapper:

    dual_condition_branch.{lq,pre}                          the branches, under FLUX's names
    dual_condition_branch.{modulation_lq,modulation_pre}
    connector                                               never applied: see `from_folders`

LoRA on the parts of a fused matrix is LoRA on the whole, exactly: A of all parts one below the other, B in blocks.  A
LoRA on the whole is one on every part: the same A, and the part's rows of B.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch

from lucidnft.backbones.flux_keys import SWAPPED, diffusers_modules, released_module, swap_halves
from lucidnft.backbones.lora_values import Lora, LoraPair
from lucidnft.checkpoint.tensor_files import first_few

Names = Literal["release", "diffusers"]

TRUNK, CONDITION = "lora_dit", "lora_condition"

_WRAPPED = {
    "condition_lq.": "dual_condition_branch.lq.",
    "condition_ldr.": "dual_condition_branch.pre.",
    "modulation_lq.": "dual_condition_branch.modulation_lq.",
    "modulation_ldr.": "dual_condition_branch.modulation_pre.",
}  # our names within the conditioner -> the release's within its wrapper
_CONNECTOR = "connector."


def folders_of(backbone: str) -> tuple[str, ...]:
    """The PEFT folders that an adapter of a backbone may have."""
    return (TRUNK, CONDITION) if backbone == "lucidflux" else (TRUNK,)


def to_folders(backbone: str, lora: Lora, names: Names) -> dict[str, dict[str, LoraPair]]:
    """{PEFT folder: its layers under their names there}; a folder without layers is left out.

    Only LucidFlux has two namings.

    Raises:
        ValueError: another word for names, or a layer that has no released name.
    """
    if names not in get_args(Names):
        raise ValueError(f"names is {names!r}, expected one of {', '.join(get_args(Names))}")
    if backbone != "lucidflux":
        return {TRUNK: dict(lora)}
    trunk = {n.removeprefix("transformer."): p for n, p in lora.items() if n.startswith("transformer.")}
    condition = {n.removeprefix("conditioner."): p for n, p in lora.items() if n.startswith("conditioner.")}
    if names == "release":
        trunk = _fused(trunk)
        wrapped: dict[str, LoraPair] = {}
        for ours, theirs in _WRAPPED.items():
            part = {n.removeprefix(ours): p for n, p in condition.items() if n.startswith(ours)}
            part = _fused(part) if ours.startswith("condition") else part
            wrapped.update({f"{theirs}{n}": p for n, p in part.items()})
        condition = wrapped
    return {folder: part for folder, part in ((TRUNK, trunk), (CONDITION, condition)) if part}


def from_folders(
    backbone: str,
    folders: Mapping[str, Lora],
    source: str,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, LoraPair]:
    """The inverse of `to_folders`, whichever names the layers have.  Names that are neither's are kept.

    LoRA on the release's connector is left out with a warning: its script puts an identity in the connector's place
    before it applies the adapter, so its results are made without it.

    ranks: of our own layers, where the export said them; a fused layer is then taken apart as it was put together.

    Raises:
        ValueError: a fused layer whose rows cannot be those of its parts.
    """
    if backbone != "lucidflux":
        return dict(folders[TRUNK])
    found = {f"transformer.{n}": p for n, p in _split(folders.get(TRUNK, {}), "transformer.", ranks).items()}
    condition = dict(folders.get(CONDITION, {}))
    connector = [n for n in condition if n.startswith(_CONNECTOR)]
    if connector:
        warnings.warn(
            f"{source} has LoRA on {len(connector)} layers of the connector ({first_few(connector)}), which is left "
            "out, as it is by the release's own script",
            stacklevel=2,
        )
    for ours, theirs in _WRAPPED.items():
        prefix = f"conditioner.{ours}"
        part = {n.removeprefix(theirs): p for n, p in condition.items() if n.startswith(theirs)}
        part = _split(part, prefix, ranks) if ours.startswith("condition") else part
        found.update({f"{prefix}{n}": p for n, p in part.items()})
    rest = {n: p for n, p in condition.items() if not n.startswith((*_WRAPPED.values(), _CONNECTOR))}
    return {**found, **{f"conditioner.{n}": p for n, p in rest.items()}}


def folder_names(
    backbone: str, modules: Iterable[str], *, like: Mapping[str, Iterable[str]]
) -> dict[str, set[str]]:
    """{PEFT folder: what it would call these modules of our network}, in the naming that the names in `like` have.

    like: the folders' names as found.
    """
    folders: dict[str, set[str]] = {folder: set() for folder in like}
    if backbone != "lucidflux":
        return {TRUNK: set(modules)}
    for folder, start in ((TRUNK, "transformer."), (CONDITION, "conditioner.")):
        if folder not in like:
            continue
        own = {name.removeprefix(start) for name in modules if name.startswith(start)}
        released = {name: _released_name(folder, name) for name in own}
        if any(name in released.values() for name in like[folder]):
            own = {name for name in released.values() if name is not None}
        folders[folder] = own
    return folders


def _released_name(folder: str, name: str) -> str | None:
    prefix = next((ours for ours in _WRAPPED if name.startswith(ours)), "") if folder == CONDITION else ""
    inner = name.removeprefix(prefix)
    if prefix.startswith("modulation"):
        return _WRAPPED[prefix] + inner
    place = released_module(inner)
    return None if place is None else _WRAPPED.get(prefix, "") + place[0]


def _fused(lora: Lora) -> dict[str, LoraPair]:
    """Layers under diffusers' names of FLUX -> under its released names."""
    parts: dict[str, dict[int, LoraPair]] = {}
    counts = {}
    unknown = []
    for name, pair in lora.items():
        place = released_module(name)
        if place is None:
            unknown.append(name)
            continue
        released, position, counts[released] = place
        parts.setdefault(released, {})[position] = _reordered(name, pair)
    if unknown:
        raise ValueError(
            f"{len(unknown)} layers have no name in the release: {first_few(unknown)}; export with --names diffusers"
        )
    return {name: _stacked(found, counts[name]) for name, found in parts.items()}


def _stacked(parts: Mapping[int, LoraPair], count: int) -> LoraPair:
    """One pair for a matrix of `count` parts, of which some may have no LoRA."""
    if count == 1:
        return parts[0]
    pairs = [parts[i] for i in sorted(parts)]
    first = pairs[0]
    shared = all(p.alpha == first.alpha and torch.equal(p.a, first.a) for p in pairs)
    width = first.a.shape[1]  # a fused matrix has the network's width in, and out of each projection
    rank = first.rank if shared else sum(p.rank for p in pairs)
    blocks, column = [], 0
    for position in range(count):
        if position not in parts:
            blocks.append(
                first.b.new_zeros(4 * width if position == 3 else width, rank)
            )  # 3: the MLP's layer
            continue
        pair = parts[position]
        # a scale of its own goes into B; equal ones leave it as it is
        factor = pair.b if pair.scale == first.scale else pair.b * (pair.scale / first.scale)
        if not shared:
            block = factor.new_zeros(factor.shape[0], rank)
            block[:, column : column + pair.rank] = factor
            factor, column = block, column + pair.rank
        blocks.append(factor)
    a = first.a if shared else torch.cat([p.a for p in pairs])
    return LoraPair(a, torch.cat(blocks), first.alpha if shared else first.scale * rank)


def _split(lora: Lora, prefix: str, ranks: Mapping[str, int] | None) -> dict[str, LoraPair]:
    """Layers under FLUX's released names -> under those of diffusers; other names are kept.

    prefix: of the names in `ranks`.
    """
    found: dict[str, LoraPair] = {}
    for released, pair in lora.items():
        parts = diffusers_modules(released)
        if parts is None:
            found[released] = pair
            continue
        if len(parts) == 1:
            found[parts[0]] = _reordered(parts[0], pair)
            continue
        shares = (1,) * 3 if len(parts) == 3 else (1, 1, 1, 4)
        if pair.b.shape[0] % sum(shares):
            raise ValueError(
                f"{released}: B has {pair.b.shape[0]} rows, expected a multiple of {sum(shares)}, those of "
                f"{', '.join(parts)}; it was made for another model"
            )
        unit = pair.b.shape[0] // sum(shares)
        rows = dict(zip(parts, pair.b.split([unit * share for share in shares]), strict=True))
        own = {name: ranks[prefix + name] for name in parts if ranks and prefix + name in ranks}
        if ranks is None or not own:
            found.update({name: replace(pair, b=b) for name, b in rows.items()})
        elif sum(own.values()) == pair.rank:
            start = 0
            for name, rank in own.items():
                columns = slice(start, start + rank)
                found[name] = LoraPair(pair.a[columns], rows[name][:, columns], pair.scale * rank)
                start += rank
        else:
            found.update({name: replace(pair, b=rows[name]) for name in own})
    return found


def _reordered(name: str, pair: LoraPair) -> LoraPair:
    """Rows of B in the other order for the one module where release and diffusers differ; its own inverse."""
    return replace(pair, b=swap_halves(pair.b)) if name == SWAPPED else pair
