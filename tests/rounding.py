"""What may be asked to be equal to the bit, and how near the rest must come.

Floats are equal to the bit on every machine

* where the same computation is done twice, in the same shapes, on one processor with as many threads: saved and loaded,
  stopped and gone on, one seed twice;
* where nothing is rounded: copies, flips, integers, comparisons, sums of halves and quarters;
* where a value comes from its own inputs alone, by +, -, ×, ÷, √, minimum and maximum: IEEE 754 leaves these no choice.

They are not where sums are added up in another order, as matrix products, convolutions, means and whole networks do in
another batch, another memory layout, with other threads or on another processor; nor are exp, tanh, atan2 or randn, of
which processors have versions of their own. There `assert_same_up_to_rounding` is to be used; and no mask either is to be
asked for pixel by pixel of a probability that was rounded so, for it may lie at the threshold.
"""

import torch

NETWORK = 1e-4  # of probabilities and grey values: float32 through a network and the steps of a sampler
HALVES = 4e-3  # likewise of probabilities that are kept as float16


def assert_same_up_to_rounding(found, expected):
    """`found` is `expected`, in arrays or tensors of one shape, but for the order in which sums were added up."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    atol = HALVES if torch.float16 in (found.dtype, expected.dtype) else NETWORK
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)
