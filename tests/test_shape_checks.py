import pytest
import torch
from jaxtyping import TypeCheckError

from delineate.training.losses import grouped_dice_loss


def test_a_wrong_shape_is_caught_while_testing():
    """The canary: without it the checks could be off unnoticed."""
    with pytest.raises(TypeCheckError):
        grouped_dice_loss(torch.rand(2, 4), torch.rand(2, 5), torch.tensor([0, 1]))
