"""The kinds of synthetic defect and how severe each is at a given severity.

Every kind maps severity 0 to the unchanged image and 1 to a ruined one; about 0.1 is just visible.  The
scales were set by eye on contact sheets so that equal severities of different kinds look about equally bad.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lucidnft.data import defect_additions as additions
from lucidnft.data import defect_filters as filters
from lucidnft.data.defect_draws import Parameters


@dataclass(frozen=True)
class DefectKind:
    """`draw(generator)` gives JSON-able parameters, `apply(image, parameters, severity, donor)` the image."""

    draw: Callable[[np.random.Generator], Parameters]
    apply: Callable[[Tensor, Parameters, float, Tensor], Tensor]
    needs_donor: bool = False


KINDS: dict[str, DefectKind] = {
    "gaussian_noise": DefectKind(additions.draw_gaussian_noise, additions.gaussian_noise),
    "residual_noise": DefectKind(additions.draw_residual_noise, additions.residual_noise),
    "speckle": DefectKind(additions.draw_speckle, additions.speckle),
    "ringing": DefectKind(filters.draw_ringing, filters.ringing),
    "blotches": DefectKind(additions.draw_blotches, additions.blotches),
    "blur": DefectKind(filters.draw_blur, filters.blur),
    "blocking": DefectKind(filters.draw_blocking, filters.blocking),
    "wrong_texture": DefectKind(filters.draw_wrong_texture, filters.wrong_texture, needs_donor=True),
    "melting": DefectKind(filters.draw_melting, filters.melting),
    "grid": DefectKind(additions.draw_grid, additions.grid),
    "painting": DefectKind(filters.draw_painting, filters.painting),
    "network_texture": DefectKind(additions.draw_network_texture, additions.network_texture),
}
"""These show in the image alone: what a no-reference quality model must find."""

UNFAITHFUL_KINDS: dict[str, DefectKind] = {
    "colour_shift": DefectKind(additions.draw_colour_shift, additions.colour_shift),
    "foreign_content": DefectKind(filters.draw_foreign_content, filters.foreign_content, needs_donor=True),
    "displacement": DefectKind(filters.draw_displacement, filters.displacement),
}
"""These can leave a flawless photograph of something else: only a comparison with LR or HR finds them."""
