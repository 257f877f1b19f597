"""Random tensors and weights of the backbone tests."""

import torch


def randomise_(module, seed=0):
    """Replace every parameter, also those that start at zero or one, by draws that keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(draw / fan_in**0.5)
    return module


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniforms(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
