import numpy as np
import pytest
import SimpleITK as sitk

from delineate.proposals.fusion import FUSIONS, fuse_majority, fuse_mean, fuse_staple, staple


def noisy_masks(seed=1, rates=((0.9, 0.1), (0.8, 0.05), (0.95, 0.2), (0.7, 0.02)), shape=(40, 40)):
    generator = np.random.default_rng(seed)
    truth = np.zeros(shape, bool)
    truth[10:28, 12:30] = True
    return truth, np.stack(
        [np.where(truth, generator.random(shape) < a, generator.random(shape) < b) for a, b in rates]
    )


def blob(n, k, shape=(64, 64)):
    masks = np.zeros((n, *shape), bool)
    masks[:k, 20:37, 20:38] = True
    return masks


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bool])
def test_equal_masks_are_their_own_consensus(name, dtype):
    for mask in (np.zeros((5, 6, 7)), np.ones((5, 6, 7)), blob(1, 1)[0].astype(float)):
        for n in (1, 2, 5):
            fused = FUSIONS[name](np.stack([mask] * n).astype(dtype))
            assert fused.dtype == np.float32
            np.testing.assert_array_equal(fused, mask)


@pytest.mark.parametrize("name", FUSIONS)
def test_the_order_of_masks_does_not_matter(name):
    _, masks = noisy_masks()
    np.testing.assert_allclose(FUSIONS[name](masks), FUSIONS[name](masks[[2, 0, 3, 1]]), atol=1e-6)


@pytest.mark.parametrize("name", FUSIONS)
def test_flipping_the_masks_flips_the_consensus(name):
    _, masks = noisy_masks()
    np.testing.assert_allclose(FUSIONS[name](masks)[::-1], FUSIONS[name](masks[:, ::-1]), atol=1e-6)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 4, 4)), np.full((2, 3, 3), 1.1), np.full((2, 3, 3), np.nan)])
def test_bad_stacks_are_refused(name, bad):
    with pytest.raises(ValueError, match="probabilities must"):
        FUSIONS[name](bad)


def test_mean_and_majority():
    stack = np.array([[[0.0, 0.5, 0.4]], [[1.0, 0.9, 0.4]]])
    np.testing.assert_allclose(fuse_mean(stack), [[0.5, 0.7, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(fuse_majority(stack), [[0, 1, 0]])  # a tie is background


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_mean_heeds_weights_and_skips_only_what_nobody_marked(dtype):
    stack = np.random.default_rng(0).random((5, 4, 6, 3)).astype(dtype)
    stack[:, :2] = 0
    stack[1:, 2] = 0  # one mask alone
    weights = np.array([0.5, 0.2, 0.1, 0.2, 0.0])
    exact = stack.astype(np.float64)
    np.testing.assert_allclose(fuse_mean(stack, weights), np.tensordot(weights, exact, 1), atol=1e-6)
    np.testing.assert_allclose(fuse_mean(stack), exact.mean(axis=0), atol=1e-6)
    back_to_front = stack.transpose(0, 3, 2, 1)[:, ::-1]  # not contiguous
    np.testing.assert_array_equal(fuse_mean(back_to_front), fuse_mean(stack).transpose(2, 1, 0)[::-1])


@pytest.mark.parametrize("confidence", [1.0, 0.5])
def test_staple_is_simpleitks(confidence):
    _, masks = noisy_masks()
    reference = sitk.STAPLEImageFilter()
    reference.SetForegroundValue(1)
    reference.SetMaximumIterations(2000)
    reference.SetConfidenceWeight(confidence)
    theirs = sitk.GetArrayFromImage(reference.Execute([sitk.GetImageFromArray(m.astype(np.uint8)) for m in masks]))
    ours = staple(masks, prior=confidence * float(masks.mean()), iterations=500)  # ITK's prior
    assert ours.converged
    np.testing.assert_allclose(ours.posterior, theirs, atol=1e-4)
    np.testing.assert_allclose(ours.sensitivity, reference.GetSensitivity(), atol=1e-4)
    np.testing.assert_allclose(ours.specificity, reference.GetSpecificity(), atol=1e-4)


def test_one_step_by_hand():
    masks = np.array([[[1, 1, 0]], [[1, 0, 0]]], bool)
    odds = np.array([9.0**2, 1.0, 1 / 9.0**2])
    W = odds / (1 + odds)
    a = [(W[0] + W[1]) / W.sum(), W[0] / W.sum()]
    b = [(2 - W[0] - W[1]) / (3 - W.sum()), (1 - W[0]) / (3 - W.sum())]
    result = staple(masks, iterations=1)
    np.testing.assert_allclose(result.sensitivity, a)
    np.testing.assert_allclose(1 - result.specificity, b)
    odds = a[0] * (1 - a[1]) / (b[0] * (1 - b[1]))
    np.testing.assert_allclose(result.posterior[0, 1], odds / (1 + odds), rtol=1e-6)
    assert (result.iterations, result.converged) == (1, False)


def test_rates_are_recovered():
    rates = ((0.9, 0.1), (0.8, 0.05), (0.95, 0.2), (0.7, 0.02), (0.6, 0.3))
    generator = np.random.default_rng(3)
    truth = generator.random((300, 300)) < 0.3
    masks = np.stack(
        [np.where(truth, generator.random(truth.shape) < a, generator.random(truth.shape) < b) for a, b in rates]
    )
    result = staple(masks, prior=0.3, iterations=200)
    np.testing.assert_allclose(result.sensitivity, [a for a, _ in rates], atol=0.02)
    np.testing.assert_allclose(result.specificity, [1 - b for _, b in rates], atol=0.02)


def test_staple_beats_majority_when_one_rater_is_good():
    truth, masks = noisy_masks(rates=((0.99, 0.01), (0.6, 0.4), (0.6, 0.4)))
    wrong = {name: int(((FUSIONS[name](masks) >= 0.5) != truth).sum()) for name in FUSIONS}
    assert wrong["staple"] < wrong["majority"]


@pytest.mark.parametrize("k", range(1, 11))
def test_stray_masks_are_not_the_consensus(k):
    assert not fuse_staple(blob(20, k).astype(np.float32)).any()


@pytest.mark.parametrize("k", [11, 15, 19])
def test_a_majority_is(k):
    np.testing.assert_array_equal(fuse_staple(blob(20, k)) >= 0.5, blob(1, 1)[0])


@pytest.mark.parametrize("k", [1, 2, 3, 10, 19])
def test_without_the_vote_one_blob_wins_but_never_its_complement(k):
    # A floor in the divisions once turned the consensus into everything except the blob.
    result = staple(blob(20, k))
    np.testing.assert_array_equal(result.posterior >= 0.5, blob(1, 1)[0])


def test_many_raters_do_not_underflow():
    _, masks = noisy_masks(rates=((0.9, 0.1),) * 64)
    result = staple(masks)
    assert np.isfinite(result.posterior).all()
    np.testing.assert_array_equal(result.posterior >= 0.5, fuse_majority(masks) >= 0.5)


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        (np.zeros((2, 3, 3)), {}, "must be bool"),
        (np.zeros((65, 3, 3), bool), {}, "from 1 to 64"),
        (np.zeros((2, 3, 3), bool), {"prior": 0.0}, "prior must lie"),
        (np.zeros((2, 3, 3), bool), {"sensitivity": 1.0}, "sensitivity must lie"),
        (np.zeros((2, 3, 3), bool), {"iterations": 0}, "iterations must"),
    ],
)
def test_staple_refuses(masks, options, message):
    with pytest.raises(ValueError, match=message):
        staple(masks, **options)
