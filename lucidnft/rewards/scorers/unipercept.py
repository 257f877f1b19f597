"""UniPercept (arXiv 2512.21675) through its authors' package unipercept-reward, whose pins need their own environment.

The package squeezes every image to 448 x 448 px, so detail of larger images is judged at that size.
"""

from __future__ import annotations

ASPECTS = {"iaa": "aesthetics", "iqa": "quality", "ista": "structure and texture richness"}
"""What the package asks its model for each of its scores."""


def build(device="cuda", model_path=None, aspect="iqa"):
    """A function from image paths to scores in [0, 1] (the package's, in [0, 100], by 100).

    model_path: a folder or repository; None takes the package's own, Thunderbolt215215/UniPercept.

    Raises:
        ValueError: another aspect than iaa, iqa or ista.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"aspect is {aspect!r}, expected one of {', '.join(ASPECTS)}")
    from unipercept_reward import UniPerceptRewardInferencer

    inferencer = UniPerceptRewardInferencer(model_path=model_path, device=device)

    def score(paths):
        # the package's reward() asks for all three aspects and turns an error into None
        return [score_one(path) for path in paths]

    def score_one(path):
        pixels = inferencer.preprocess_image(path)
        value = inferencer.model.score(
            inferencer.device, inferencer.tokenizer, pixels, inferencer.gen_cfg, ASPECTS[aspect]
        )
        value = value[0] if isinstance(value, (list, tuple)) else value
        return float(value) / 100

    return score
