"""Autoencoders, for finding what is unlike the training images (DeepLense: Alexander et al. 2020, arXiv:2008.12731).

`model(images)` gives the reconstruction, `encode` the code [n, num_outputs], `decode` images from codes, and `losses`
the pieces of the training loss by name: add them up and minimise the sum, with one optimiser over all parameters.
All pieces are per pixel, so that learning rates carry over between image sizes.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from lenslib.models.registry import register

WIDTHS = (32, 64, 128, 256)  # channels of the stages, each of which halves the map


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL divergence [n] of normal distributions [n, k] from the standard one (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def dense_encoder(in_chans: int, image_size: int, outputs: int, hidden: tuple[int, ...] = (512, 128)) -> nn.Sequential:
    """[n, in_chans, s, s] -> [n, outputs] through fully connected layers."""
    sizes = [in_chans * image_size**2, *hidden]
    layers = [nn.Flatten()]
    for before, after in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def dense_decoder(in_chans: int, image_size: int, code: int, hidden: tuple[int, ...] = (128, 512)) -> nn.Sequential:
    """[n, code] -> [n, in_chans, s, s], the mirror of `dense_encoder`."""
    layers, before = [], code
    for after in hidden:
        layers += [nn.Linear(before, after), nn.ReLU()]
        before = after
    image = nn.Unflatten(1, (in_chans, image_size, image_size))
    return nn.Sequential(*layers, nn.Linear(before, in_chans * image_size**2), image)


def map_sizes(image_size: int) -> list[int]:
    """Sides of the image and of the maps after each stage; a stride of 2 with padding rounds up."""
    sizes = [image_size]
    for _ in WIDTHS:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def conv_encoder(in_chans: int, image_size: int, outputs: int) -> nn.Sequential:
    """[n, in_chans, s, s] -> [n, outputs] through stages that halve the map."""
    layers, before = [], in_chans
    for after in WIDTHS:
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * map_sizes(image_size)[-1] ** 2, outputs))


class Enlarge(nn.Module):
    """Repeat pixels until the map has `side` of them: no checkerboard as from transposed convolutions, any size."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return interpolate(x, size=(self.side, self.side), mode="nearest")


def conv_decoder(in_chans: int, image_size: int, code: int) -> nn.Sequential:
    """[n, code] -> [n, in_chans, s, s], the mirror of `conv_encoder`."""
    *larger, smallest = map_sizes(image_size)
    before = WIDTHS[-1]
    layers = [nn.Linear(code, before * smallest**2), nn.ReLU(), nn.Unflatten(1, (before, smallest, smallest))]
    for after, side in zip((*WIDTHS[-2::-1], WIDTHS[0]), larger[::-1], strict=True):
        layers += [Enlarge(side), nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, in_chans, 3, padding=1))


class Autoencoder(nn.Module):
    """An encoder and a decoder; [n, in_chans, s, s] -> the same shape. The loss is the squared error alone."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        return self.decoder(code)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(images))

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"reconstruction": reconstruction_loss(self(images), images)}


def reconstruction_loss(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Half the mean squared error: minus the log-likelihood of a pixel of unit variance, up to a constant."""
    return 0.5 * (reconstruction - images).square().mean()


class VAE(Autoencoder):
    """Variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114); codes are drawn in training, means otherwise.

    The sum of its losses is minus the evidence lower bound of a pixel, up to a constant, for pixels of variance `beta`
    about the reconstruction, times that variance.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, beta: float = 1.0):
        super().__init__(encoder, decoder)
        self.beta = beta

    def encode_distribution(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the code, each [n, num_outputs]."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)  # exp stays finite whatever an untrained encoder says

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self._draw(*self.encode_distribution(images))

    def _draw(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mean, log_variance = self.encode_distribution(images)
        reconstruction = self.decode(self._draw(mean, log_variance))
        divergence = kl_divergence(mean, log_variance).mean() / images[0].numel()
        return {"reconstruction": reconstruction_loss(reconstruction, images), "kl": self.beta * divergence}


class AAE(Autoencoder):
    """Adversarial autoencoder (Makhzani et al. 2015, arXiv:1511.05644): codes that a critic takes for standard normal.

    "critic" trains the critic alone, on codes cut off from the encoder; "deception" trains the encoder alone, against
    a frozen critic. So each parameter gets its own gradient from the sum, and one optimiser serves both players.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, code: int, weight: float = 0.01):
        super().__init__(encoder, decoder)
        self.code, self.weight = code, weight
        self.critic = nn.Sequential(
            nn.Linear(code, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        code = self.encode(images)
        return {
            "reconstruction": reconstruction_loss(self.decode(code), images),
            "deception": self.weight * self.deception_loss(code),
            "critic": self.critic_loss(code),
        }

    def critic_loss(self, code: torch.Tensor) -> torch.Tensor:
        """Cross entropy of the critic on codes [n, k] (0) and as many draws of the prior (1)."""
        code = code.detach()
        logits = self.critic(torch.cat([torch.randn_like(code), code]))
        truth = torch.cat([torch.ones_like(logits[: len(code)]), torch.zeros_like(logits[: len(code)])])
        return binary_cross_entropy_with_logits(logits, truth)

    def deception_loss(self, code: torch.Tensor) -> torch.Tensor:
        """How surely the critic, which gets no gradient, tells codes [n, k] from draws of the prior."""
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        logits = functional_call(self.critic, frozen, (code,))
        return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


SIZES = {
    "takes_size": lambda size: size >= 16,
    "size_rule": "16 pixels or more",
    "precision": "bf16-mixed",
    "channels_last": True,
}


@register("ae", "autoencoder", source="Hinton & Salakhutdinov 2006, Science 313, 504", **SIZES)
def ae(num_outputs: int, image_size: int, in_chans: int) -> nn.Module:
    """Fully connected."""
    return Autoencoder(
        dense_encoder(in_chans, image_size, num_outputs), dense_decoder(in_chans, image_size, num_outputs)
    )


@register("dcae", "autoencoder", source="Alexander et al. 2020, arXiv:2008.12731", **SIZES)
def dcae(num_outputs: int, image_size: int, in_chans: int) -> nn.Module:
    """Deep and convolutional."""
    return Autoencoder(*_conv_pair(num_outputs, image_size, in_chans, num_outputs))


@register("vae", "autoencoder", source="Kingma & Welling 2013, arXiv:1312.6114", **SIZES)
def vae(num_outputs: int, image_size: int, in_chans: int, beta: float = 1.0) -> nn.Module:
    """Convolutional, variational."""
    return VAE(*_conv_pair(num_outputs, image_size, in_chans, 2 * num_outputs), beta)


@register("aae", "autoencoder", source="Makhzani et al. 2015, arXiv:1511.05644", **SIZES)
def aae(num_outputs: int, image_size: int, in_chans: int, weight: float = 0.01) -> nn.Module:
    """Convolutional, adversarial; `weight` is that of the deception of the critic."""
    return AAE(*_conv_pair(num_outputs, image_size, in_chans, num_outputs), num_outputs, weight)


def _conv_pair(code: int, image_size: int, in_chans: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return conv_encoder(in_chans, image_size, outputs), conv_decoder(in_chans, image_size, code)
