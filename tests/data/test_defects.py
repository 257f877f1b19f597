"""Synthetic defects: seeded, graded, local where asked, and honest about what they need."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from lucidnft.data.bundled import photograph_paths
from lucidnft.data.defects import (
    DEFECT_NAMES,
    UNFAITHFUL_NAMES,
    Defect,
    DefectRecipe,
    Region,
    apply_defect,
    apply_recipe,
    draw_defect,
    draw_recipe,
    draw_region,
    visible_severity,
)
from lucidnft.images import read_image
from lucidnft.rng import numpy_generator_for

ALL_NAMES = (*DEFECT_NAMES, *UNFAITHFUL_NAMES)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return read_image(photograph_paths(["chelsea.png"])[0]).rgb[:, 60:124, 130:210]


@pytest.fixture(scope="module")
def donor() -> Tensor:
    return read_image(photograph_paths(["coffee.png"])[0]).rgb[:, 200:264, 300:380]


def drawn(name: str, key: int = 0) -> Defect:
    return draw_defect(numpy_generator_for(0, "test", name, key), name)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_severity_zero_changes_nothing_and_results_stay_in_range(
    name: str, image: Tensor, donor: Tensor
) -> None:
    defect = drawn(name)
    untouched = apply_defect(image, defect, 0.0, donor=donor)
    assert torch.equal(untouched, image) and untouched.data_ptr() != image.data_ptr()
    ruined = apply_defect(image, defect, 1.0, donor=donor)
    assert ruined.shape == image.shape and ruined.dtype == torch.float32
    assert float(ruined.min()) >= 0 and float(ruined.max()) <= 1
    assert (ruined - image).abs().mean() > 0.01


@pytest.mark.parametrize("name", ALL_NAMES)
def test_more_severe_is_further_from_the_original(name: str, image: Tensor, donor: Tensor) -> None:
    """Averaged over draws: one draw of block sizes or displacements may move a little to and fro."""
    severities = (0.1, 0.3, 0.6, 1.0)
    distances = np.mean(
        [
            [
                float((apply_defect(image, drawn(name, k), s, donor=donor) - image).pow(2).mean())
                for s in severities
            ]
            for k in range(4)
        ],
        axis=0,
    )
    assert (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_defect_repeats_exactly_and_survives_json(name: str, image: Tensor, donor: Tensor) -> None:
    defect = drawn(name)
    assert defect == drawn(name)
    assert any(defect != drawn(name, key) for key in range(1, 9))
    restored = Defect(name, json.loads(json.dumps(defect.parameters)))
    first = apply_defect(image, defect, 0.5, donor=donor)
    torch.manual_seed(99)
    assert torch.equal(first, apply_defect(image, restored, 0.5, donor=donor))


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("size", [(8, 8), (9, 31), (40, 8)])
def test_small_and_odd_sizes_work(name: str, size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(3))
    for key in range(3):
        ruined = apply_defect(image, drawn(name, key), 0.9, donor=image.flip(1))
        assert ruined.shape == image.shape and torch.isfinite(ruined).all()


def test_flat_images_stay_finite() -> None:
    flat = torch.full((3, 16, 16), 0.5)
    for name in ALL_NAMES:
        assert torch.isfinite(apply_defect(flat, drawn(name), 0.7, donor=flat)).all()


def test_a_region_is_local_and_covers_its_area(image: Tensor, donor: Tensor) -> None:
    region = Region(seed=5, area=0.3, cell=0.4)
    mask = region.mask(64, 80)
    assert float(mask.mean()) == pytest.approx(0.3, abs=0.08)
    assert torch.equal(mask, region.mask(64, 80))
    spoilt, used = apply_recipe(image, DefectRecipe((drawn("grid"),), region), 0.8)
    assert torch.equal(used, mask)
    outside = (mask == 0).expand_as(image)
    assert torch.equal(spoilt[outside], image[outside])
    inside = (mask == 1).expand_as(image)
    assert (spoilt - image).abs()[inside].mean() > 0.01


def test_recipes_compose_in_order_and_share_the_severity(image: Tensor) -> None:
    noise, blur = drawn("gaussian_noise"), Defect("blur", drawn("blur").parameters, share=0.5)
    recipe = DefectRecipe((noise, blur))
    expected = apply_defect(apply_defect(image, noise, 0.6), blur, 0.3)
    assert torch.equal(apply_recipe(image, recipe, 0.6)[0], expected)
    assert recipe.total_severity(0.6) == pytest.approx(1 - 0.4 * 0.7)
    assert json.loads(json.dumps(recipe.metadata(0.6)))["severity"] == 0.6


def test_drawn_recipes_are_seeded_and_mixed() -> None:
    recipes = [draw_recipe(numpy_generator_for(1, "recipes", i)) for i in range(200)]
    assert recipes == [draw_recipe(numpy_generator_for(1, "recipes", i)) for i in range(200)]
    assert {defect.name for recipe in recipes for defect in recipe.defects} == set(DEFECT_NAMES)
    composed = np.mean([len(recipe.defects) > 1 for recipe in recipes])
    local = np.mean([recipe.region is not None for recipe in recipes])
    assert 0.25 < composed < 0.45 and 0.25 < local < 0.45
    assert all(len({d.name for d in r.defects}) == len(r.defects) for r in recipes)


def test_weights_say_how_likely_a_kind_is() -> None:
    weights = [9.0 if name == "painting" else 1.0 for name in DEFECT_NAMES]
    drawn_names = [
        draw_recipe(numpy_generator_for(1, "w", i), weights=weights, compose_probability=0).defects[0].name
        for i in range(200)
    ]
    assert 0.35 < np.mean([name == "painting" for name in drawn_names]) < 0.55  # 9 of 20


def test_borrowed_detail_comes_from_the_donor(image: Tensor, donor: Tensor) -> None:
    swapped = apply_defect(image, Defect("foreign_content", {"match_colour": False}), 1.0, donor=donor)
    assert torch.allclose(swapped, donor, atol=1e-6)
    texture = apply_defect(image, Defect("wrong_texture", {"sigma": 2.0, "grey": False}), 1.0, donor=image)
    assert (texture - image).abs().mean() < 0.01  # its own texture is no damage


def test_visible_severity_ignores_what_cannot_be_seen() -> None:
    image = torch.full((3, 32, 48), 0.5)
    damaged = image.clone()
    damaged[:, :, 32:] += 0.1
    seen = visible_severity(image, damaged, torch.full((1, 32, 48), 0.7), 16)
    assert seen.shape == (2, 3)
    assert torch.allclose(seen, torch.tensor([[0.0, 0.0, 0.7]]).expand(2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: draw_defect(numpy_generator_for(0, "t"), "nois"), "'nois' is unknown"),
        (lambda x: apply_defect(x, drawn("blur"), 1.2), "severity is 1.2"),
        (lambda x: apply_defect(x, drawn("blur"), float("nan")), "severity is nan"),
        (lambda x: apply_defect(x[:, :4], drawn("blur"), 0.5), "8 px"),
        (lambda x: apply_defect(x[0], drawn("blur"), 0.5), "expected"),
        (lambda x: apply_defect(x, drawn("wrong_texture"), 0.5), "needs a donor"),
        (lambda x: apply_defect(x, drawn("wrong_texture"), 0.5, donor=x[:, :40]), "needs a donor"),
    ],
)
def test_wrong_use_is_refused(call: object, message: str, image: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        call(image)  # type: ignore[operator]


def test_regions_are_drawn_within_their_limits() -> None:
    regions = [draw_region(numpy_generator_for(2, "regions", i)) for i in range(50)]
    assert all(0.05 <= region.area <= 0.7 for region in regions)
    assert len({region.seed for region in regions}) == 50
