"""An optimiser as named tensors and a JSON header, and back, bit for bit.

The state of AdamW (exp_avg, exp_avg_sq, step) and of any optimiser whose state per parameter is tensors and
plain numbers fits.  Parameters go by name, so a changed order of construction is an error, not a mix-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.checkpoint.tensor_files import first_few

_JSON_SCALARS = (bool, int, float, str, type(None))
_PARAMETER_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) for `save_tensors`: tensors go as "<parameter>/<field>", the rest as JSON.

    named_parameters: (name, parameter) pairs that cover every parameter of the optimiser.

    Raises:
        ValueError: a parameter without a name, or a state or setting that is neither tensor nor JSON.
    """
    names = _names_of(optimizer, named_parameters)
    tensors: dict[str, Tensor] = {}
    states: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        states[name] = {"tensors": [], "scalars": {}}
        for field, value in state.items():
            if isinstance(value, Tensor):
                states[name]["tensors"].append(field)
                tensors[f"{name}/{field}"] = value
            else:
                states[name]["scalars"][field] = _checked(value, f"state '{field}' of parameter '{name}'")
    groups = []
    for group in optimizer.param_groups:
        settings = {}
        for key, value in group.items():
            if key != "params":
                # A learning rate may be a tensor (capturable optimisers); as a number it is the same bits.
                number = value.item() if isinstance(value, Tensor) else value
                settings[key] = _checked(number, f"setting '{key}' of the optimiser")
        groups.append({"params": [names[p] for p in group["params"]], "settings": settings})
    return tensors, {"optimizer": type(optimizer).__name__, "param_groups": groups, "state": states}


def load_optimizer_(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
) -> None:
    """Put back, in place, what `flatten_optimizer` took: settings of every group and all state.

    Dtypes are kept as saved.  Moments go to the device of their parameter; `step` stays on the CPU unless
    the optimiser keeps it beside the parameter (capturable or fused).

    Raises:
        ValueError: another optimiser class, other groups, other parameters, or tensors that do not belong;
            the optimiser is unchanged then.
    """
    names = _names_of(optimizer, named_parameters)
    _check_same(optimizer, names, header)
    state = _gathered_state(tensors, header, {name: p for p, name in names.items()})
    for group, saved in zip(optimizer.param_groups, header["param_groups"], strict=True):
        for key, value in saved["settings"].items():
            current = group.get(key)
            if isinstance(current, Tensor):
                current.fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value
    beside = [g for g in optimizer.param_groups if g.get("capturable") or g.get("fused")]
    on_device = {p for group in beside for p in group["params"]}
    optimizer.state.clear()
    for parameter, name in names.items():
        if name in state:
            optimizer.state[parameter] = {
                field: _placed(value, field, parameter, parameter in on_device)
                for field, value in state[name].items()
            }


def _names_of(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[Tensor, str]:
    """Parameter -> name, for the optimiser's parameters, in the optimiser's order."""
    by_parameter: dict[Tensor, str] = {parameter: name for name, parameter in named_parameters}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    unnamed = [str(tuple(p.shape)) for p in held if p not in by_parameter]
    if unnamed:
        raise ValueError(
            f"{len(unnamed)} parameters of the optimiser have no name (shapes {first_few(unnamed)}); "
            "pass the named_parameters() of the module it trains"
        )
    return {p: by_parameter[p] for p in held}


def _check_same(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], header: Mapping[str, Any]
) -> None:
    if not {"optimizer", "param_groups", "state"} <= header.keys():
        raise ValueError(f"not the header of an optimiser: it has {sorted(header)}")
    kind = type(optimizer).__name__
    if header.get("optimizer") != kind:
        raise ValueError(f"saved optimiser is {header.get('optimizer')!r}, this run uses {kind!r}")
    saved_groups = [group["params"] for group in header["param_groups"]]
    groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    if len(saved_groups) != len(groups):
        raise ValueError(f"saved optimiser has {len(saved_groups)} parameter groups, this run {len(groups)}")
    for index, (saved, current) in enumerate(zip(saved_groups, groups, strict=True)):
        missing = [n for n in current if n not in set(saved)]
        extra = [n for n in saved if n not in set(current)]
        if missing or extra:
            raise ValueError(
                f"parameter group {index} differs from the saved one: {len(missing)} not saved "
                f"({first_few(missing)}), {len(extra)} only saved ({first_few(extra)})"
            )


def _gathered_state(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    state: dict[str, dict[str, Any]] = {}
    missing = []
    for name, saved in header["state"].items():
        state[name] = dict(saved["scalars"])
        for field in saved["tensors"]:
            key = f"{name}/{field}"
            if key in tensors:
                state[name][field] = tensors[key]
            else:
                missing.append(key)
    known = {f"{name}/{field}" for name, saved in header["state"].items() for field in saved["tensors"]}
    strangers = [key for key in tensors if key not in known] + [n for n in state if n not in parameters]
    if missing or strangers:
        raise ValueError(
            f"optimiser state does not fit: {len(missing)} tensors missing ({first_few(missing)}), "
            f"{len(strangers)} entries unexpected ({first_few(strangers)})"
        )
    for name, fields in state.items():
        for field in _PARAMETER_SHAPED:
            shape = tuple(fields[field].shape) if field in fields else None
            if shape not in (None, tuple(parameters[name].shape)):
                raise ValueError(
                    f"optimiser state '{name}/{field}' has shape {shape}, the parameter "
                    f"{tuple(parameters[name].shape)}; it belongs to another model"
                )
    return state


def _placed(value: Any, field: str, parameter: Tensor, step_on_device: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    device = torch.device("cpu") if field == "step" and not step_on_device else parameter.device
    return value.to(device, copy=True)


def _checked(value: Any, what: str) -> Any:
    if isinstance(value, _JSON_SCALARS):
        return value
    if isinstance(value, (tuple, list)) and all(isinstance(v, _JSON_SCALARS) for v in value):
        return list(value)
    raise ValueError(f"{what} is a {type(value).__name__}, which cannot be stored; expected tensor or number")
