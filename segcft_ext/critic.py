"""A critic of the counterfactuals' appearance: the realism that a guide does not ask for.

A segmentor is content with a haze where a lung should be. A patch discriminator (Isola et al. 2017), trained along with
the image mechanism on real images against counterfactual ones, is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from monai.losses.adversarial_loss import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

__all__ = ["Critic"]


class Critic(nn.Module):
    """Least-squares patch discriminator (Mao et al. 2017) with its own optimiser.

    Patches are small, so it judges texture and borders; what size a structure may have is not its business.

    Args:
        weight: of the realism term in the loss of fine-tuning.
        spatial_dims: 2 or 3.
        channels: width of the first layer.
        layers: layers of stride two; each doubles the size of a patch.
        learning_rate: of the critic's own steps.
    """

    def __init__(
        self,
        weight: float = 0.05,
        spatial_dims: int = 2,
        channels: int = 24,
        layers: int = 2,
        learning_rate: float = 0.001,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.network = PatchDiscriminator(
            spatial_dims, channels=channels, in_channels=1, num_layers_d=layers, norm="INSTANCE"
        )
        self.loss = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate, betas=(0.5, 0.99))

    def realism(self, image: Tensor) -> Tensor:
        """How far images (B, 1, \\*spatial) are from passing for real ones; differentiable in the images."""
        return torch.as_tensor(self.loss(self.network(image)[-1].float(), target_is_real=True, for_discriminator=False))

    def learn(self, real: Tensor, counterfactual: Tensor) -> float:
        """One step of the critic on real and counterfactual images (B, 1, \\*spatial); returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = sum(
            self.loss(self.network(image.detach())[-1].float(), target_is_real=is_real, for_discriminator=True)
            for image, is_real in [(real, True), (counterfactual, False)]
        )
        loss = torch.as_tensor(loss)
        loss.backward()
        if idist.get_world_size() > 1:
            for parameter in self.network.parameters():
                assert parameter.grad is not None
                parameter.grad = torch.as_tensor(idist.all_reduce(parameter.grad)) / idist.get_world_size()
        self.optimizer.step()
        return loss.item()

    def get_extra_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(dict(state))
