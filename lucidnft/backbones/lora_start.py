"""The setting that starts a policy from an adapter on the disk.  Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from lucidnft.schema import ConfigModel

SHAPE_SETTINGS = ("lora_rank", "lora_alpha", "target_modules")
"""What an adapter says of itself."""


class LoraStartSettings(ConfigModel):
    """Part of every `model:` section."""

    # A PEFT folder (of lucidnft-export, or the LucidNFT release's) or a policy.safetensors: the current and the old
    # policy start from it, and its layers, ranks and scales are the run's.  The reference stays the base without any
    # adapter, so kl_beta pulls towards the base and not towards this start.
    adapter: str | None = None

    @model_validator(mode="after")
    def _the_adapter_says_its_shape(self) -> LoraStartSettings:
        given = [name for name in SHAPE_SETTINGS if name in self.model_fields_set]
        if self.adapter is not None and given:
            raise ValueError(
                f"{', '.join(given)} cannot be set beside adapter: ranks, scales and layers are those of "
                f"{self.adapter}; remove one or the other"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_the_adapter_says(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.adapter is not None:  # unread defaults, which would be refused when read back
            values = {name: value for name, value in values.items() if name not in SHAPE_SETTINGS}
        return values
