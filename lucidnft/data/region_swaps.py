"""Hard negatives for faithfulness: a photograph with one region replaced by something else, without a seam.

arXiv 2603.05947 (v3) makes them with an inpainting model.  Without one, the region is filled from another
photograph or with texture of the same photograph, and joined by gradient-domain blending (Perez et al.,
"Poisson image editing", 2003).  The control `own` pastes the photograph's own region through the same steps: a
score that falls for it has learned the seam, not the content.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import factorized
from torch import Tensor

from lucidnft.data.defects import Region
from lucidnft.images import resize

Filling = Literal["foreign", "texture", "own"]

CANDIDATES = 24  # patches that texture synthesis chooses among, for every patch it lays
VISIBLE_SWAP = 0.04
"""Mean absolute difference inside the region (10 steps of 255) below which a swap replaces like by like."""


def draw_swap_mask(generator: np.random.Generator, height: int, width: int, area: float) -> Tensor:
    """(H, W) bool: blobs that cover about `area`, in (0, 1), of the image."""
    if not 0 < area < 1:
        raise ValueError(f"area is {area}; a swapped region covers more than nothing and less than the image")
    region = Region(int(generator.integers(2**62)), area, float(generator.uniform(0.3, 0.8)))
    return region.mask(height, width)[0] > 0.5


def swap_region(
    image: Tensor,
    mask: Tensor,
    filling: Filling,
    generator: np.random.Generator,
    *,
    donor: Tensor | None = None,
) -> Tensor:
    """image (3, H, W) in [0, 1] with the pixels of mask (H, W) bool replaced; all others are untouched.

    filling: `foreign` takes them from donor (3, H, W), `texture` synthesises them from the rest of the image,
    `own` takes the image itself, resampled by 3/4 and back, which no LR image can tell.

    Raises:
        ValueError: an unknown filling, a donor missing or of another size, or a mask that is empty or full.
    """
    if filling not in get_args(Filling):
        raise ValueError(f"filling {filling!r} is unknown; choose one of {', '.join(get_args(Filling))}")
    if filling == "foreign" and (donor is None or donor.shape != image.shape):
        seen = None if donor is None else tuple(donor.shape)
        raise ValueError(f"filling 'foreign' needs a donor of shape {tuple(image.shape)}, got {seen}")
    if filling == "own":
        size = (image.shape[1], image.shape[2])
        smaller = (max(1, size[0] * 3 // 4), max(1, size[1] * 3 // 4))
        content = resize(resize(image[None], smaller), size)[0]
    elif filling == "texture":
        content = synthesise_texture(image, mask, generator)
    else:
        assert donor is not None
        content = donor
    return paste_seamlessly(image, content, mask)


def visible_swap(image: Tensor, swapped: Tensor, mask: Tensor) -> bool:
    """Whether a swap shows: sky for the same sky is nothing to find.  image, swapped: (3, H, W); mask: (H, W)."""
    return float((swapped - image).abs().mean(dim=0)[mask].mean()) > VISIBLE_SWAP


def paste_seamlessly(image: Tensor, content: Tensor, mask: Tensor) -> Tensor:
    """content inside mask (H, W) bool, shifted by the harmonic function that makes its rim meet the image.

    image, content: (3, H, W) in [0, 1].  The result is clamped to [0, 1].

    Raises:
        ValueError: the mask is empty (nothing to paste) or full (no rim to meet).
    """
    inside = mask.cpu().numpy()
    if not inside.any() or inside.all():
        raise ValueError(
            f"mask covers {inside.mean():.0%} of the image; a region has an inside and an outside"
        )
    rows, columns = np.nonzero(inside)
    number = np.full(inside.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    difference = (image - content).double().cpu().numpy()  # what the harmonic function is on the rim
    degree = np.zeros(len(rows))
    known = np.zeros((len(rows), 3))
    links: list[tuple[np.ndarray, np.ndarray]] = []
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = rows + down, columns + right
        within = (y >= 0) & (y < inside.shape[0]) & (x >= 0) & (x < inside.shape[1])
        here, y, x = np.nonzero(within)[0], y[within], x[within]
        degree[here] += 1  # beyond the image's border nothing is asked
        neighbour = number[y, x]
        rim = neighbour < 0
        np.add.at(known, here[rim], difference[:, y[rim], x[rim]].T)
        links.append((here[~rim], neighbour[~rim]))
    here, neighbour = (np.concatenate(part) for part in zip(*links, strict=True))
    laplacian = sparse.diags(degree) - sparse.csr_matrix(
        (np.ones(len(here)), (here, neighbour)), shape=(len(rows), len(rows))
    )
    solve = factorized(laplacian.tocsc())
    shift = np.stack([solve(channel) for channel in known.T])  # (3, pixels inside)
    result = image.clone()
    filled = content[:, mask].cpu().double().numpy() + shift
    result[:, mask] = torch.from_numpy(filled).to(image).clamp(0, 1)
    return result


def synthesise_texture(
    image: Tensor, mask: Tensor, generator: np.random.Generator, *, patch: int = 24, overlap: int = 8
) -> Tensor:
    """(3, H, W): the image with mask (H, W) bool filled by patches from outside it, each chosen to fit.

    Image quilting (Efros and Freeman, 2001) with blended rather than cut overlaps.
    """
    height, width = mask.shape
    patch = min(patch, height, width)
    overlap = min(overlap, patch // 2)
    corners = _patches_outside(mask, patch)
    known = (~mask).float()
    result = image * known
    ramp = torch.minimum(torch.arange(1, patch + 1), torch.arange(patch, 0, -1)).clamp(max=overlap) / overlap
    window = ramp[:, None] * ramp
    rows, columns = torch.nonzero(mask, as_tuple=True)
    for top in range(int(rows.min()) - overlap, int(rows.max()) + 1, patch - overlap):
        for left in range(int(columns.min()) - overlap, int(columns.max()) + 1, patch - overlap):
            y, x = (min(max(0, at), side - patch) for at, side in ((top, height), (left, width)))
            here = (slice(None), slice(y, y + patch), slice(x, x + patch))
            if bool(known[here[1:]].all()):
                continue
            drawn = corners[torch.from_numpy(generator.integers(len(corners), size=CANDIDATES))]
            patches = torch.stack([image[:, a : a + patch, b : b + patch] for a, b in drawn.tolist()])
            errors = ((patches - result[here]).square().sum(dim=1) * known[here[1:]]).sum(dim=(1, 2))
            chosen = patches[int(errors.argmin())]
            # where something is known already the new patch fades in from its rim, elsewhere it counts in full
            share = torch.where(known[here[1:]] > 0, window, torch.ones_like(window)) * mask[here[1:]]
            result[here] = torch.lerp(result[here], chosen, share)
            known[here[1:]] = 1
    return result


def _patches_outside(mask: Tensor, patch: int) -> Tensor:
    """(n, 2) corners of patches free of the mask; of those least covered when none is."""
    covered = torch.nn.functional.avg_pool2d(mask[None, None].float(), patch, stride=1)[0, 0]
    return torch.nonzero(covered <= covered.min() + 1e-6)
