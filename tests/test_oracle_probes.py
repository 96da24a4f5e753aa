"""Heads of probes, and one step of their training, beside torch's."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samclip_jax import sharding
from samclip_jax.evals.probing import CVNETS, fit
from samclip_jax.evals.segmentation_probe import cross_entropy
from samclip_jax.models.probes import CHANNELS, POOLS, RATES, DeepLabV3, Linear, PSPNet

pytestmark = pytest.mark.oracle
INPUTS, CLASSES = 64, 5


def conv(torch, kernel, dilation=1):
    """torch's convolution, batch norm, ReLU of CVNets, with random weights."""
    inputs, outputs, side = kernel
    layer = torch.nn.Sequential(
        torch.nn.Conv2d(
            inputs, outputs, side, padding=side // 2 * dilation, dilation=dilation, bias=False
        ),
        torch.nn.BatchNorm2d(outputs),
        torch.nn.ReLU(),
    )
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return layer


def originals(torch):
    """{name: (our head, torch's module)}."""

    class DeepLab(torch.nn.Module):
        def __init__(self):
            super().__init__()
            wide = (INPUTS, CHANNELS)
            self.pixel, self.image = conv(torch, (*wide, 1)), conv(torch, (*wide, 1))
            self.dilated = torch.nn.ModuleDict(
                {str(rate): conv(torch, (*wide, 3), rate) for rate in RATES}
            )
            self.project = conv(torch, (5 * CHANNELS, CHANNELS, 1))
            self.classifier = torch.nn.Conv2d(CHANNELS, CLASSES, 1)

        def forward(self, x):
            image = self.image(torch.nn.functional.adaptive_avg_pool2d(x, 1))
            image = torch.nn.functional.interpolate(image, size=x.shape[2:], mode="bilinear")
            parts = [self.pixel(x), *(self.dilated[str(rate)](x) for rate in RATES), image]
            return self.classifier(self.project(torch.cat(parts, 1)))

    class Pyramid(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.grids = torch.nn.ModuleDict(
                {str(grid): conv(torch, (INPUTS, 16, 1)) for grid in POOLS}
            )
            self.fusion = conv(torch, (INPUTS + 64, CHANNELS, 3))
            self.classifier = torch.nn.Conv2d(CHANNELS, CLASSES, 1)

        def forward(self, x):
            coarse = [
                torch.nn.functional.interpolate(
                    self.grids[str(grid)](torch.nn.functional.adaptive_avg_pool2d(x, grid)),
                    size=x.shape[2:],
                    mode="bilinear",
                    align_corners=True,
                )
                for grid in POOLS
            ]
            return self.classifier(self.fusion(torch.cat([x, *coarse], 1)))

    class Single(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Conv2d(INPUTS, CLASSES, 1)

        def forward(self, x):
            return self.classifier(x)

    return {
        "linear": (Linear, Single),
        "deeplabv3": (DeepLabV3, DeepLab),
        "pspnet": (PSPNet, Pyramid),
    }


def copy_weights(ours, theirs):
    """theirs, a torch module, into ours, whose parts have the same names."""
    for name, layer in theirs.named_children():
        to = ours[name] if isinstance(ours, nnx.Dict) else getattr(ours, name)
        kind = type(layer).__name__
        if kind == "Conv2d":
            kernel = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
            to.kernel[...] = jnp.array(kernel.reshape(to.kernel.shape))
            to.bias[...] = jnp.array(layer.bias.detach().numpy())
        elif kind == "Sequential":
            weight = layer[0].weight.detach().numpy().transpose(2, 3, 1, 0)
            to.conv.kernel[...] = jnp.array(weight)
            to.norm.scale[...] = jnp.array(layer[1].weight.detach().numpy())
            to.norm.bias[...] = jnp.array(layer[1].bias.detach().numpy())
        else:
            copy_weights(to, layer)


@pytest.mark.parametrize("name", ["linear", "deeplabv3", "pspnet"])
def test_a_head_and_a_step_are_torchs(name):
    """In training, by batch statistics; then the step, and in evaluation, by running ones."""
    import torch

    torch.manual_seed(0)
    ours, theirs = originals(torch)[name]
    ours, theirs = ours(INPUTS, CLASSES, nnx.Rngs(0)), theirs()
    copy_weights(ours, theirs)
    if hasattr(ours, "dropout"):
        ours.dropout.rate = 0.0
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 7, 9, INPUTS)).astype(np.float32)
    labels = rng.integers(-1, CLASSES, (3, 28, 36))
    optimizer = dataclasses.replace(
        CVNETS.optimizer, warmup_steps=0, learning_rate=1e-3, weight_decay=0.1
    )
    training = dataclasses.replace(CVNETS, optimizer=optimizer)
    batches, mesh = [(features, labels)], sharding.replicas()
    predict = fit(ours, cross_entropy, batches, training, 1, mesh, name)

    kernels = [p for n, p in theirs.named_parameters() if p.ndim == 4]
    others = [p for n, p in theirs.named_parameters() if p.ndim < 4]
    groups = [{"params": kernels, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    stepper = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    x = torch.tensor(features).permute(0, 3, 1, 2)
    logits = torch.nn.functional.interpolate(
        theirs(x), size=(28, 36), mode="bilinear", align_corners=True
    )
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels), ignore_index=-1).backward()
    stepper.step()
    theirs.eval()
    with torch.no_grad():
        expected = theirs(x).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(predict(features), expected, atol=2e-4, rtol=1e-4)
