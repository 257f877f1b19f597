"""Picture of docs/how_to/choose_and_check.md: the maps of a restoration with a patch that is not in its input.

python benchmarks/maps.py docs/pictures/maps.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lucidnft.data.bundled import photograph_paths
from lucidnft.images import pixels_to_tensor, read_image, save_image
from lucidnft.inference import load_policy, restore
from lucidnft.sample.maps import build_map_rewards, draw_map, map_scale

GAP = 8  # pixels between the pictures


def main(path: Path) -> None:
    """Restore a held-out photograph, paste a piece of another one, and draw every map that ships."""
    hr, other = (read_image(p).rgb for p in photograph_paths(["chelsea.png", "astronaut.png"]))
    lr = torch.nn.functional.avg_pool2d(hr[None, :, 8:296, 60:444], 4)
    sr = restore(load_policy("base"), lr, keys=["chelsea"])
    sr[0, :, 176:272, 16:112] = other[:, 60:156, 176:272]
    pictures = [
        draw_map(lr, sr, reward, map_scale(reward), name) for name, reward in build_map_rewards().items()
    ]
    sheet = Image.new(
        "RGB", (sum(picture.width + GAP for picture in pictures) - GAP, pictures[0].height), "white"
    )
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    save_image(path, pixels_to_tensor(np.asarray(sheet)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
