"""An NFT step of a full-size backbone with random weights on one GPU: seconds, share of the matrix rate, memory.

    python benchmarks/backbone_step.py --backbone lucidflux --size 1024 --weights random --gradient_checkpointing
    python benchmarks/backbone_step.py --backbone dit4sr --size 512 --weights random

Phases of a step on one LR image: condition (encoders), rollout (the old policy), decode, optimise (old, reference and
current pass, backward, AdamW on the adapters).  Each is measured eager and compiled, with both attention
backends; what cannot run is reported with its reason.  Times are medians of repeats after a warm-up, whose time is
reported as such: it holds the compilation.  The FLOPs are those of the passes as they run, attention and what
gradient checkpointing repeats included, counted in the first variant; the card's rate is that of a square bf16
product.  Random weights cost what trained ones cost; rewards are not part of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from small_backbones import SMALL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lucidnft.algorithms.nft import NFT, NFTSettings
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.speed import compile_blocks, set_attention_backend
from lucidnft.environment import git_commit
from lucidnft.policy import Policy
from lucidnft.records import Condition, ImageBatch, Rollout
from lucidnft.rollout import RolloutConfig, generate_rollout

RESULTS = Path(__file__).parent / "results"
UPSCALE = 4
GROUPS = (0,)
GB = 1e9
VARIANTS = ("eager sdpa", "eager xformers", "compiled sdpa", "compiled xformers")  # compiled ones last


class Step:
    """The phases of a step on one LR image, as the trainer calls them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        on_gpu = self.device.type == "cuda"
        config = model_config(args, dtype="bfloat16" if on_gpu else "float32")
        with self.device:  # 12 billion random numbers take minutes on a CPU
            backbone = config.build(seed=0)
        backbone.to(self.device)
        backbone.autocast_dtype = torch.bfloat16 if on_gpu else None
        backbone.set_gradient_checkpointing(args.gradient_checkpointing)
        self.policy = Policy(backbone, config, seed=0)
        self.policy.mark_updated()  # as in every step but the first: the old pass is needed
        self.network = backbone.network
        self.dtype = backbone.autocast_dtype or torch.float32
        self.config = RolloutConfig(
            num_groups=1, group_size=args.group_size, num_inference_steps=args.num_inference_steps,
            chunk_size=args.chunk_size,
        )  # fmt: skip
        settings = NFTSettings(
            per_device_batch_size=args.per_device_batch_size, num_train_timesteps=args.num_train_timesteps
        )
        self.algorithm = NFT(settings, seed=0)
        self.optimizer = torch.optim.AdamW(self.policy.parameters.values(), lr=1e-5)
        self.size = (args.size, args.size)
        lr = torch.rand(1, 3, args.size // UPSCALE, args.size // UPSCALE)
        self.batch = ImageBatch(lr, ("random",), GROUPS, upscale=UPSCALE).to(self.device)
        self.trained = args.group_size * args.num_train_timesteps

    def condition(self) -> Condition:
        return self.policy.encode_condition(self.batch)

    def rollout(self, condition: Condition) -> Rollout:
        return generate_rollout(self.policy, condition, GROUPS, self.config, seed=0, step=0, size=self.size)

    def decode(self, rollout: Rollout) -> Tensor:
        return self.policy.decode(rollout.x_0, chunk_size=1)

    def optimise(self, rollout: Rollout) -> None:
        advantages = torch.linspace(-1, 1, self.config.group_size, device=self.device)[None]
        for mini in self.algorithm.minibatches(rollout, advantages, GROUPS, 0):
            losses, _ = self.algorithm.loss(self.policy, mini)
            (losses.mean() * mini.share).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def model_config(args: argparse.Namespace, *, dtype: str) -> LucidFluxBackboneConfig | DiT4SRBackboneConfig:
    """The `model:` section of random weights."""
    fields: dict[str, Any] = {
        "model_name_or_path": None, "dtype": dtype, "quantize": args.quantize,
        "lora_rank": args.lora_rank, "lora_alpha": 2.0 * args.lora_rank,
    }  # fmt: skip
    if args.architecture == "small":
        fields["architecture"] = SMALL[args.backbone]
    if args.backbone == "lucidflux":
        return LucidFluxBackboneConfig(**fields)
    return DiT4SRBackboneConfig(**fields, lr_key="lr", guidance_scale=args.guidance_scale)


class Meter:
    """Times and memory of calls on one device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.on_gpu = device.type == "cuda"

    def seconds(self, call: Callable[[], object]) -> float:
        wait = partial(torch.cuda.synchronize, self.device) if self.on_gpu else lambda: None
        wait()
        started = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - started

    def measure(self, call: Callable[[], object]) -> dict[str, float | None]:
        """Warm-up, median seconds, and the peak of allocated bytes over the repeats (None on a CPU)."""
        warm_up = self.seconds(call)
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        median = statistics.median(self.seconds(call) for _ in range(self.repeats))
        peak = torch.cuda.max_memory_allocated(self.device) if self.on_gpu else None
        return {"warm_up_seconds": warm_up, "seconds": median, "peak_bytes": peak}

    def matrix_rate(self) -> float:
        """FLOP per second of a square bf16 product, fed from memory."""
        side = 8192 if self.on_gpu else 256
        a, b = torch.randn(2, side, side, device=self.device, dtype=torch.bfloat16)
        times = [self.seconds(lambda: a @ b) for _ in range(20)]
        return 2 * side**3 / statistics.median(times[5:])


def count_flops(call: Callable[[], object], step: Step) -> int:
    """FLOPs of a call.  bitsandbytes' own products are unknown to the counter, so weights are unpacked for it."""
    four_bit = {
        type(m)
        for m in step.network.modules()
        if isinstance(m, nn.Linear) and hasattr(m.weight, "quant_state")
    }
    with FlopCounterMode(display=False) as counter, ExitStack() as patches:
        for kind in four_bit:
            patches.enter_context(patch.object(kind, "forward", _unpacked))
        call()
    return counter.get_total_flops()


def _unpacked(layer: Any, x: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return F.linear(x, weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def measure_phases(step: Step, meter: Meter) -> dict[str, Any]:
    """Every phase of a variant, in order."""
    condition = step.condition()
    rollout = step.rollout(condition)
    phases = {
        "condition": meter.measure(step.condition),
        "rollout": meter.measure(lambda: step.rollout(condition)),
        "decode": meter.measure(lambda: step.decode(rollout)),
        "optimise": meter.measure(lambda: step.optimise(rollout)),
    }
    return {"phases": phases, "finite": bool(torch.isfinite(rollout.x_0).all())}


def measure_variant(name: str, step: Step, meter: Meter, report: dict[str, Any]) -> dict[str, Any]:
    """One variant's numbers, or why there are none."""
    mode, backend = name.split()
    try:
        set_attention_backend(step.network, backend, device=step.device, dtype=step.dtype)
        if mode == "compiled" and not report["blocks_compiled"]:
            report["blocks_compiled"] = compile_blocks(step.network)
        result = measure_phases(step, meter)
        if "flops" not in report:
            rollout = step.rollout(step.condition())
            report["flops"] = {
                "rollout_per_image": count_flops(lambda: step.rollout(rollout.condition), step)
                // step.config.group_size,
                "optimise_per_trained_timestep": count_flops(lambda: step.optimise(rollout), step)
                // step.trained,
            }
    except (ValueError, RuntimeError, NotImplementedError) as error:  # a kernel that is not there, or memory
        step.optimizer.zero_grad(set_to_none=True)
        if meter.on_gpu:
            torch.cuda.empty_cache()
        return {"unavailable": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    phases, flops = result["phases"], report["flops"]
    result["rollout_seconds_per_image"] = phases["rollout"]["seconds"] / step.config.group_size
    result["optimise_seconds_per_trained_timestep"] = phases["optimise"]["seconds"] / step.trained
    for phase, per in (("rollout", "image"), ("optimise", "trained_timestep")):
        rate = flops[f"{phase}_per_{per}"] / result[f"{phase}_seconds_per_{per}"]
        result[f"{phase}_share_of_matrix_rate"] = rate / report["matrix_flop_per_second"]
    return result


def aims(report: dict[str, Any]) -> dict[str, str]:
    """Which of the aims hold: "yes", "no", or why these settings cannot tell."""
    settings, variants = report["settings"], report["variants"]
    measured = {name: v for name, v in variants.items() if "phases" in v}
    real = settings["architecture"] == "full" and settings["device"].startswith("cuda")
    if not real or not measured:
        return {"all": "not measured: full-size weights on a GPU are needed"}
    peaks = {n: max(p["peak_bytes"] for p in v["phases"].values()) for n, v in measured.items()}
    name, peak = min(peaks.items(), key=lambda item: item[1])
    verdicts = {}
    for backbone, size, limit in (("lucidflux", 1024, 80), ("dit4sr", 512, 24)):
        if (settings["backbone"], settings["size"]) == (backbone, size):
            verdict = "yes" if peak < limit * GB else "no"
            verdicts[f"{backbone} {size} px under {limit} GB"] = f"{verdict}: {peak / GB:.1f} GB ({name})"
    share = {n: v["optimise_share_of_matrix_rate"] for n, v in measured.items()}
    best = max(share, key=lambda n: share[n])
    verdict = "yes" if share[best] >= 0.5 else "no"
    verdicts["optimise at half of the matrix rate"] = f"{verdict}: {share[best]:.2f} ({best})"
    return verdicts


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of an NFT step of a full-size backbone.")
    add = parser.add_argument
    # fmt: off
    add("--backbone", choices=("lucidflux", "dit4sr"), required=True)
    add("--size", type=int, default=512, help="output side in pixels")
    add("--weights", choices=("random",), default="random")
    add("--architecture", choices=("full", "small"), default="full", help="small: to try this script")
    add("--num_inference_steps", "--steps", type=int, default=6)
    add("--group_size", type=int, default=4)
    add("--chunk_size", type=int, default=4, help="rollouts solved at a time")
    add("--per_device_batch_size", type=int, default=1, help="rollouts per backward pass")
    add("--num_train_timesteps", type=int, default=2, help="times per rollout, in one pass")
    add("--gradient_checkpointing", action="store_true")
    add("--quantize", choices=("none", "nf4", "int8", "fp8"), default="none")
    add("--lora_rank", type=int, default=32)
    add("--guidance_scale", type=float, default=1.0, help="of dit4sr; 1.0 is off")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    add("--device", default="cuda")
    add("--repeats", type=int, default=5)
    add("--output", type=Path, help="default: results/backbone_step_<backbone>_<size>.json")
    # fmt: on
    args = parser.parse_args(argv)
    args.variants.sort(key=VARIANTS.index)  # compiling cannot be undone
    args.output = args.output or RESULTS / f"backbone_step_{args.backbone}_{args.size}.json"
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = torch.device(args.device)
    meter = Meter(device, args.repeats)
    report: dict[str, Any] = {
        "commit": git_commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if meter.on_gpu else "cpu",
        "settings": {name: value for name, value in vars(args).items() if name != "output"},
        "matrix_flop_per_second": meter.matrix_rate(),
        "blocks_compiled": 0,
        "variants": {},
    }
    step = Step(args)
    report["weights_bytes"] = torch.cuda.memory_allocated(device) if meter.on_gpu else None
    for name in args.variants:
        report["variants"][name] = measure_variant(name, step, meter, report)
        print(name, json.dumps(report["variants"][name]), flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        report["aims"] = aims(report)
        args.output.write_text(json.dumps(report, indent=1) + "\n")  # what is there stays if a later one dies
    print(f"matrix rate: {report['matrix_flop_per_second'] / 1e12:.1f} TFLOP/s")
    for aim, verdict in report["aims"].items():
        print(f"aim: {aim}: {verdict}")


if __name__ == "__main__":
    main()
