"""Colour profiles of image files: which can be kept, and CMYK to sRGB by its profile."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageCms

_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError)


def profile_damage(profile: bytes) -> str:
    """Why a profile cannot be used; "" when it can."""
    try:
        ImageCms.ImageCmsProfile(BytesIO(profile))
    except _ERRORS as error:
        return f"{error} ({type(error).__name__})"
    return ""


def cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """A CMYK image as sRGB, and why its profile was not used; "" when it was, or when there is none.

    Without a usable profile the inks are taken as ideal, each colour being 1 less its ink, less the black.
    """
    if not profile:
        return image.convert("RGB"), ""
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except _ERRORS as error:
        return image.convert("RGB"), f"{error} ({type(error).__name__})"
    assert converted is not None  # not in place
    return converted, ""
