"""The base class of every config class: unknown keys are errors, values never change after loading.

Each component keeps its config class beside the class it builds; `lucidnft.config` joins them.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class ConfigModel(BaseModel):
    """A strict, frozen record of settings.  Unknown keys raise, defaults are validated too."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take `learning_rate: yes` as 1.0
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            accepted = set(get_args(annotation)) | {annotation}
            if accepted & {int, float} and bool not in accepted:
                expected = "float" if float in accepted else "int"
                raise PydanticCustomError(f"{expected}_type", "Input should be a number")
        return value
