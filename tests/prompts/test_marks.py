"""Marks as values, on the grid, and known to a denoiser."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diffusion.test_sampling import ZERO_SNR, crooked_network, fixed_noise
from tests.rounding import assert_same_up_to_rounding

from delineate.diffusion.codec import PixelUnshuffleCodec
from delineate.diffusion.sampling import known, sample_ddim, sample_one_step
from delineate.diffusion.schedule import trailing_times
from delineate.errors import PromptError
from delineate.prompts.marks import MarkError, Marks
from delineate.prompts.prompt import Prompt
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.grid import Fit, canonical_fit, stack_of
from delineate.scans.scan import Scan

ROOT = Path(__file__).parents[2]


def test_masks_come_back_from_marks():
    rng = np.random.default_rng(0)
    sign = rng.integers(3, size=(3, 5, 4))
    masks = np.stack([sign == 1, sign == 2])
    assert np.array_equal(Marks.from_masks(*masks).to_masks((3, 5, 4)), masks)
    assert np.array_equal(Marks.from_masks(masks[0]).to_masks((3, 5, 4)), [masks[0], 0 * masks[1]])


def test_marks_are_values_and_so_are_prompts_with_them():
    first, second = Marks([(0, 1, 2), (0, 1, 2)]), Marks(positive=[np.array([0, 1, 2])])
    assert first == second
    assert len(first) == 1
    assert hash(Prompt("liver", first)) == hash(Prompt("liver", second))
    assert Prompt("liver", first) != Prompt("liver")


def test_later_marks_win():
    marks = Marks([(0, 0, 0), (0, 0, 1)], [(0, 0, 2)]) + Marks([(0, 0, 2)], [(0, 0, 1)])
    assert set(marks.positive) == {(0, 0, 0), (0, 0, 2)}
    assert marks.negative == ((0, 0, 1),)


def one_line(refusal, *words):
    text = str(refusal.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("voxel", [(0, 1), (0, 1, 2, 3), (0, -1, 0), (0, 1.5, 0), "abc", 7, None])
def test_what_is_no_voxel_is_refused_in_one_line(voxel):
    with pytest.raises(MarkError) as refusal:
        Marks(positive=[voxel])
    one_line(refusal, "three whole numbers", repr(voxel))


def test_both_signs_at_one_voxel_are_refused_in_one_line():
    with pytest.raises(MarkError) as refusal:
        Marks([(0, 4, 5)], [(0, 4, 5), (0, 1, 1)])
    one_line(refusal, "(0, 4, 5)", "Keep one")


def test_marks_outside_of_the_scan_are_refused_in_one_line():
    with pytest.raises(PromptError) as refusal:
        Marks([(0, 4, 5), (0, 3, 3)]).check((1, 4, 6))
    one_line(refusal, "1 x 4 x 6", "1 do not", "(0, 4, 5)")
    Marks([(0, 3, 5)]).check((1, 4, 6))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.2, 5), st.integers(0, 2**31))
def test_no_mark_vanishes_on_the_grid_or_strays(rows, columns, stretch, seed):
    """On a coarse grid and on a fine one; what is marked there lies within a pixel of a mark."""
    fit = Fit.of((rows, columns), (1.0, stretch), 32)
    rng = np.random.default_rng(seed)
    mark = torch.zeros(1, rows, columns, dtype=torch.bool)
    mark[0, rng.integers(rows), rng.integers(columns)] = True
    on_grid = fit.marks_to_grid(mark)
    assert on_grid.any()
    near = fit.from_grid(torch.nn.functional.max_pool2d(on_grid[:, None].float(), 3, 1, 1))[0, 0]
    assert near[mark[0]].item() > 0
    everything = fit.marks_to_grid(torch.ones_like(mark))
    assert torch.equal(everything[:, None], fit.to_grid(torch.ones(1, 1, rows, columns), fill=0.0) > 0.5)


def test_on_a_grid_of_its_own_size_a_mark_stays_where_it_is():
    mark = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.2
    assert torch.equal(Fit.of((16, 16), (1.0, 1.0), 16).marks_to_grid(mark), mark)


def test_some_slices_of_a_stack_are_those_of_the_whole_stack():
    voxels = np.random.default_rng(0).random((7, 20, 24)).astype(np.float32)
    grey = Scan(voxels, FLAT_AFFINE, "MR", None)
    assert_same_up_to_rounding(stack_of(grey, 32, [0, 3, 6]), stack_of(grey, 32)[[0, 3, 6]])
    colour = Scan(np.repeat(voxels[..., None], 3, axis=-1), FLAT_AFFINE, None, None)
    assert_same_up_to_rounding(stack_of(colour, 32, [2]), stack_of(colour, 32)[[2]])
    assert canonical_fit(grey, 32).inner == (27, 32)


@pytest.mark.parametrize("sampler", [sample_ddim, sample_one_step])
def test_known_values_come_out_exactly_and_the_rest_as_before_where_pixels_are_independent(sampler):
    value = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    where = torch.arange(16).view(1, 1, 4, 4) % 3 == 0
    how = (fixed_noise((1, 1, 4, 4)), trailing_times(5), ZERO_SNR)
    free = sampler(crooked_network, *how)
    told = sampler(known(crooked_network, value, where), *how)
    assert torch.equal(told[where], value[where])
    assert torch.equal(told[~where], free[~where])  # crooked_network looks at every pixel alone


def test_of_two_gaussians_the_unknown_one_follows_the_known_one_but_not_all_the_way():
    """The conditional mean is 1.2; the docstring of `known` says what replacement gives."""
    rho, value = 0.8, 1.5
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)

    def ideal(x, t):
        a, sigma = (v.item() for v in ZERO_SNR.signal_and_noise(torch.tensor([t]), x[:, :, 0, 0]))
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
        return (x[:, :, 0, 0] @ gain.T)[:, :, None, None]

    start = torch.zeros(1, 2, 1, 1, dtype=torch.float64)  # the sampler is affine, so this is the mean over all noise
    where = torch.tensor([True, False]).view(1, 2, 1, 1)
    denoise = known(ideal, torch.full_like(start, value), where)
    drawn = sample_ddim(denoise, lambda step: start, trailing_times(200), ZERO_SNR).flatten()
    assert drawn[0].item() == value
    assert 0.4 < drawn[1].item() < rho * value


def test_places_are_where_the_codec_puts_pixels():
    where = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.3
    for codec in (PixelUnshuffleCodec(), PixelUnshuffleCodec(colours=3, stride=4)):
        assert torch.equal(codec.decode(codec.encode(where.float())) > 0.5, where)
        assert torch.equal(codec.places(where), codec.encode(where.float()) > 0)


def test_the_python_of_the_how_to_runs(tmp_path):
    page = (ROOT / "docs" / "how-to" / "marks.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("found ")
