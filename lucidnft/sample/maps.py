"""Pictures of where a restored image is at fault: the saved output in grey, red where a reward finds it bad.

The scale is absolute: from which score of a place on there is no red, and from which down it is full, is fixed for
every reward (`SCALES`) and stands in the legend.  So a picture without fault has no red at all, and two pictures,
also of two runs, can be compared.  With a scale of its own every image would be red at its worst place, however
good that is.

A picture carries what it was made of: one whose files, reward and scale are still the same is not drawn again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import lucidnft
from lucidnft.evaluation.evaluator import BAR_FORMAT
from lucidnft.evaluation.metrics import weights_of
from lucidnft.evaluation.pairing import Problem
from lucidnft.images import read_image, resize
from lucidnft.inference.tile_memory import is_out_of_memory
from lucidnft.rewards.base import Reward, check_size
from lucidnft.rewards.places import by_occlusion, place_scores, redden, tells_places
from lucidnft.rewards.registry import build_reward
from lucidnft.sample.scores import NamedPair
from lucidnft.sample.stamped import file_states, read_stamp, save_stamped

LONGEST_SIDE = 1600  # pixels of a picture without its legend
MOST_PIXELS = 2**24  # of an output that a reward sees; larger ones are reduced first, and the legend says so
VERSION = 1
"""Part of every stamp: raise it when a map of the same files comes out differently."""
SHIPPED_MAPS = ("lucid_consistency", "quality_net", "lr_fidelity")
"""Rewards with a map whose weights ship with the package."""

_LINE = 16  # pixels from one line of the legend to the next
_STRONGEST = 0.8  # share of red at full red: the picture stays visible below


@dataclass(frozen=True)
class Scale:
    """Scores of places between which red grows from nothing to full, and what red means."""

    clear: float
    red: float
    meaning: str


# Set by looking at HR images, published restorations and enlarged LR images beside their LR images: most places of the
# HR images stay clear.  That of the occlusion map is for windows of an eighth of the side.
SCALES = {
    "lucid_consistency": Scale(0.95, 0.6, "does not show what the input shows"),
    "quality_net": Scale(0.6, 0.1, "looks like a failed restoration: blur, noise, ringing"),
    "lr_fidelity": Scale(-0.05, -0.15, "differs in brightness or colour from the input"),
}
OCCLUSION_SCALE = Scale(0.0, -0.01, "would gain if the input stood there")


@dataclass
class SavedMaps:
    """Pictures that there are, and those that there are not with the reason."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)  # that an earlier run made of the same
    problems: list[Problem] = field(default_factory=list)


def build_map_rewards(names: Sequence[str] = SHIPPED_MAPS) -> dict[str, Reward]:
    """Rewards by name for `save_maps`.

    Raises:
        ValueError, ImportError, RuntimeError: as `build_reward` and `map_scale`.
    """
    rewards = {name: build_reward(name) for name in names}
    for reward in rewards.values():
        map_scale(reward)
    return rewards


def map_scale(reward: Reward) -> Scale:
    """The scale of a reward's map: as fixed here, else from the best to the worst score its card knows.

    Raises:
        ValueError: it judges an image as a whole, needs more than the input, or its card has no range.
    """
    card = reward.card
    if not tells_places(reward):
        raise ValueError(f"reward '{card.name}' judges an image as a whole, it has no map; leave it out")
    if more := sorted(card.needs - {"lr"}):
        raise ValueError(
            f"the map of reward '{card.name}' needs {' and '.join(more)}, which restoring has not"
        )
    if by_occlusion(reward):
        return OCCLUSION_SCALE
    if card.name in SCALES:
        return SCALES[card.name]
    if card.value_range is None:
        raise ValueError(
            f"reward '{card.name}' has a map but no value_range in its card; a map needs a scale"
        )
    worst, best = card.value_range
    return Scale(best, worst, f"scores low under {card.name}")


def save_maps(
    pairs: Sequence[NamedPair],
    rewards: Mapping[str, Reward],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> SavedMaps:
    """Draw every reward's map over every output: folder/<name of the pair>.<name of the reward>.png.

    One output is in memory at a time.  What cannot be read or is too small for a reward becomes a problem.

    Raises:
        ValueError: as `map_scale`, before anything is drawn.
        OSError: a picture cannot be written.
    """
    scales = {name: map_scale(reward) for name, reward in rewards.items()}
    identities = {name: _identity(name, rewards[name], scales[name], device) for name in rewards}
    for reward in rewards.values():
        reward.to(device)
    result = SavedMaps()
    for stem, source, output in tqdm(
        pairs, desc="maps", unit="image", bar_format=BAR_FORMAT, disable=not progress
    ):
        states = file_states((source, output))
        stamps = {name: f"{identity} {states}" for name, identity in identities.items()}
        places = {name: folder / f"{stem}.{re.sub('[/:]', '-', name)}.png" for name in rewards}
        kept = {name for name, path in places.items() if states and read_stamp(path)[0] == stamps[name]}
        result.kept += [places[name] for name in rewards if name in kept]
        todo = [name for name in rewards if name not in kept]
        if not todo:
            continue
        try:
            lr, sr, size = _load(source, output)
        except ValueError as error:
            result.problems.append(Problem("", stem, str(error), tuple(todo) if kept else ()))
            continue
        for name in todo:
            try:
                check_size(rewards[name].card, size)
                picture = draw_map(lr.to(device), sr.to(device), rewards[name], scales[name], name, size)
                save_stamped(places[name], picture, stamps[name])
            except (ValueError, MemoryError, RuntimeError, OSError) as error:
                result.problems.append(Problem("", stem, _problem_of_one(error), (name,)))
            else:
                result.written.append(places[name])
    return result


def _load(source: Path, output: Path) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """LR (1, 3, h, w) and SR (1, 3, H, W), reduced to MOST_PIXELS, and the (H, W) of the file."""
    lr, sr = (read_image(path).rgb[None] for path in (source, output))
    size = (sr.shape[2], sr.shape[3])
    if size[0] * size[1] > MOST_PIXELS:
        sr = _within(sr, int((MOST_PIXELS * max(size) / min(size)) ** 0.5))
        lr = _within(lr, max(sr.shape[2:]))  # rewards refuse an LR image that is larger than SR
    return lr, sr, size


def _problem_of_one(error: Exception) -> str:
    """Why one map is missing; an error that is not about this image alone is raised again."""
    if isinstance(error, OSError):
        if error.errno != errno.ENAMETOOLONG:
            raise error
        return "the name of its map would be too long"
    if not isinstance(error, ValueError) and not is_out_of_memory(error):
        raise error
    return str(error).split("\n")[0]


def _identity(name: str, reward: Reward, scale: Scale, device: torch.device | str) -> str:
    """Hash of everything a reward's maps depend on, but the images."""
    kind = type(reward)
    depends = [
        VERSION, name, f"{kind.__module__}:{kind.__qualname__}", weights_of(reward), repr(scale), LONGEST_SIDE,
        MOST_PIXELS, by_occlusion(reward), lucidnft.__version__, torch.__version__, str(device).partition(":")[0],
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(depends).encode(), digest_size=16).hexdigest()


def draw_map(
    lr: Tensor, sr: Tensor, reward: Reward, scale: Scale, name: str, size: tuple[int, int] | None = None
) -> Image.Image:
    """The picture of one map: sr (1, 3, H, W) in grey, with red, and a legend below.

    size: (H, W) of the output, where sr is a reduced one.
    """
    scores = place_scores(reward, lr, sr)
    shown = _within(sr.cpu(), LONGEST_SIDE)
    height, width = shown.shape[2:]
    faults = ((scale.clear - scores) / (scale.clear - scale.red)).clamp(0, 1)
    spread = F.interpolate(faults[None, None], size=(height, width), mode="bilinear")[0, 0]
    grey = shown.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)  # what is red in it is the map's red
    pixels = redden(grey, _STRONGEST * spread)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    lines = [f"{name}: the redder, the more a place {scale.meaning}", _facts(scores, scale)]
    if size is not None and size != tuple(sr.shape[2:]):
        lines.append(f"looked at reduced from {size[1]}x{size[0]} to {sr.shape[3]}x{sr.shape[2]} px")
    least = round(max(ImageFont.load_default().getlength(line) for line in lines)) + 12
    picture = Image.new("RGB", (max(width, least), height + 4 * _LINE), "white")
    picture.paste(Image.fromarray(pixels), (0, 0))
    _draw_legend(picture, height, scale, lines)
    return picture


def _facts(scores: Tensor, scale: Scale) -> str:
    reddish = float((scores < scale.clear).float().mean())
    return (
        f"mean {float(scores.mean()):.4g}, worst place {float(scores.min()):.4g}, red in {reddish:.1%} of it"
    )


def _draw_legend(picture: Image.Image, top: int, scale: Scale, lines: Sequence[str]) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    left, right = f"{scale.clear:g} and above", f"{scale.red:g} and below"
    start = 6 + round(draw.textlength(left, font)) + 6
    shares = torch.linspace(0, _STRONGEST, 120).expand(10, -1)
    bar = redden(torch.full((1, 3, 10, 120), 0.5), shares)[0].mul(255).round().byte().permute(1, 2, 0)
    draw.text((6, top + 3), left, fill="black", font=font)
    picture.paste(Image.fromarray(bar.numpy()), (start, top + 5))
    draw.text((start + 126, top + 3), right, fill="black", font=font)
    for row, line in enumerate(lines, start=1):
        draw.text((6, top + 3 + row * _LINE), line, fill="black", font=font)


def _within(images: Tensor, longest: int) -> Tensor:
    """The images, reduced where their longer side is beyond this."""
    height, width = images.shape[2:]
    factor = longest / max(height, width)
    if factor >= 1:
        return images
    return resize(images, (max(1, round(height * factor)), max(1, round(width * factor))))
