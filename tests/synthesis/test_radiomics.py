import numpy as np
import pytest
from scipy import stats

from delineate.synthesis.radiomics import (
    LEVELS,
    LOG_SIGMAS,
    discretise,
    feature_names,
    features,
    filtered_images,
    first_order,
    glcm,
    glcm_features,
    glrlm,
    glrlm_features,
    glszm,
    glszm_features,
    ngtdm_features,
)

SMALL = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]])  # Haralick's own example, 1973
PIXELS = 20 * 24

# PyRadiomics 3.0.1 on `reference_levels() + 1`, force2D, binWidth 1
PYRADIOMICS = {
    "glcm": {
        "Contrast": 62.791476,
        "Correlation": 0.58495006,
        "JointEnergy": 0.0042766808,
        "JointEntropy": 8.1491099,
        "Idm": 0.287257789,
        "InverseVariance": 0.293387225,
        "DifferenceAverage": 4.28632723,
        "DifferenceVariance": 42.8244483,
        "DifferenceEntropy": 3.0142196,
        "SumEntropy": 5.77341959,
        "ClusterTendency": 239.540409,
        "ClusterShade": 493.917724,
        "ClusterProminence": 120878.257,
        "MaximumProbability": 0.0111174676,
    },
    "glrlm": {
        "ShortRunEmphasis": 0.92050529,
        "LongRunEmphasis": 1.44386331,
        "GrayLevelNonUniformityNormalized": 0.0329317414,
        "RunLengthNonUniformityNormalized": 0.819019151,
        "RunPercentage": 0.892708333,
        "GrayLevelVariance": 76.5717597,
        "RunVariance": 0.164893087,
        "RunEntropy": 5.38473701,
        "LowGrayLevelRunEmphasis": 0.0558963451,
        "HighGrayLevelRunEmphasis": 308.596024,
    },
    "glszm": {
        "SmallAreaEmphasis": 0.742861614,
        "LargeAreaEmphasis": 3.81578947,
        "GrayLevelNonUniformityNormalized": 0.0324835526,
        "SizeZoneNonUniformityNormalized": 0.51103705,
        "ZonePercentage": 0.633333333,
        "GrayLevelVariance": 79.3429601,
        "ZoneVariance": 1.32271468,
        "ZoneEntropy": 6.07444585,
        "LowGrayLevelZoneEmphasis": 0.0513018466,
        "HighGrayLevelZoneEmphasis": 333.766447,
    },
    "ngtdm": {
        "Coarseness": 0.0234656385,
        "Contrast": 0.45090447,
        "Busyness": 0.167868446,
        "Complexity": 1179.28151,
        "Strength": 7.37895591,
    },
    "firstorder": {
        "Energy": 143671,
        "Entropy": 4.95174513,
        "Mean": 14.9520833,
        "Median": 14,
        "10Percentile": 3,
        "90Percentile": 28,
        "InterquartileRange": 13.25,
        "Range": 31,
        "MeanAbsoluteDeviation": 7.40585069,
        "RobustMeanAbsoluteDeviation": 6.13146386,
        "RootMeanSquared": 17.3007105,
        "Skewness": 0.198497686,
        "Kurtosis": 1.98156696,
        "Uniformity": 0.03328125,
        "Minimum": 1,
        "Maximum": 32,
    },
}
BY_PIXELS = {  # ours times this is IBSI's
    "Energy": PIXELS,
    "Coarseness": 1 / PIXELS,
    "Busyness": PIXELS,
    "Strength": 1 / PIXELS,
}


def reference_levels():
    i, j = np.indices((20, 24))
    return (i * i // 9 + (i * j) // 17 + 3 * (j // 4) + (i * j) % 3) % 32


def texture(seed=0, shape=(40, 56)):
    return np.random.default_rng(seed).normal(0, 0.3, shape).clip(-1, 1)


@pytest.mark.parametrize("kind", PYRADIOMICS)
def test_every_feature_equals_that_of_pyradiomics(kind):
    levels = reference_levels()
    ours = {
        "glcm": glcm_features,
        "glrlm": glrlm_features,
        "glszm": glszm_features,
        "ngtdm": ngtdm_features,
        "firstorder": lambda levels: first_order(levels + 1.0, levels),
    }[kind](levels)
    assert set(ours) - {"StandardDeviation"} == set(PYRADIOMICS[kind])
    for name, value in PYRADIOMICS[kind].items():
        assert ours[name] * BY_PIXELS.get(name, 1) == pytest.approx(value, rel=1e-7), name


def test_first_order_features_are_those_of_numpy_and_scipy():
    image = texture()
    found = first_order(image, discretise(image, (-1, 1)))
    values = image.ravel()
    assert found["Mean"] == pytest.approx(values.mean())
    assert found["StandardDeviation"] == pytest.approx(values.std())
    assert found["Skewness"] == pytest.approx(stats.skew(values))
    assert found["Kurtosis"] == pytest.approx(stats.kurtosis(values, fisher=False))
    assert found["InterquartileRange"] == pytest.approx(stats.iqr(values))
    assert found["90Percentile"] == pytest.approx(np.percentile(values, 90))
    counts = np.histogram(values, bins=LEVELS, range=(-1, 1))[0]
    assert found["Entropy"] == pytest.approx(stats.entropy(counts, base=2))
    assert found["Uniformity"] == pytest.approx(((counts / counts.sum()) ** 2).sum())


def test_cooccurrences_are_haralicks():
    """The four matrices printed in Haralick et al., 1973, figure 3: right, down, and both diagonals."""
    right, down, down_right, down_left = glcm(SMALL)[:, :4, :4]
    assert right * 24 == pytest.approx(np.array([[4, 2, 1, 0], [2, 4, 0, 0], [1, 0, 6, 1], [0, 0, 1, 2]]))
    assert down * 24 == pytest.approx(np.array([[6, 0, 2, 0], [0, 4, 2, 0], [2, 2, 2, 2], [0, 0, 2, 0]]))
    assert down_left * 18 == pytest.approx(np.array([[4, 1, 0, 0], [1, 2, 2, 0], [0, 2, 4, 1], [0, 0, 1, 0]]))
    assert down_right * 18 == pytest.approx(np.array([[2, 1, 3, 0], [1, 2, 1, 0], [3, 1, 0, 2], [0, 0, 2, 0]]))


def test_contrast_of_a_checkerboard_by_hand():
    """Across and down every neighbour differs by 1, on diagonals none: contrast (1 + 1 + 0 + 0) / 4."""
    found = glcm_features(np.indices((9, 8)).sum(axis=0) % 2)
    assert found["Contrast"] == pytest.approx(0.5)
    assert found["Correlation"] == pytest.approx(0)  # -1, -1, 1, 1
    assert found["JointEnergy"] == pytest.approx(0.5)
    assert found["JointEntropy"] == pytest.approx(1)
    assert found["Idm"] == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)


def test_runs_by_hand():
    rows, columns, down_right, down_left = glrlm(SMALL)
    assert rows[:4].tolist() == [[1, 2, 0, 0], [0, 2, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]]
    assert columns[:4].tolist() == [[0, 1, 1, 0], [0, 2, 0, 0], [3, 1, 0, 0], [2, 0, 0, 0]]
    for counts in (rows, columns, down_right, down_left):
        assert (counts * np.arange(1, 5)).sum() == SMALL.size


def test_runs_of_stripes_by_hand():
    """Stripes along the rows: runs of 10 across, of 1 in every other direction."""
    stripes = np.repeat(np.arange(10) % 2, 10).reshape(10, 10)
    found = glrlm_features(stripes)
    assert found["LongRunEmphasis"] == pytest.approx((100 + 1 + 1 + 1) / 4)
    assert found["ShortRunEmphasis"] == pytest.approx((0.01 + 3) / 4)
    assert found["RunPercentage"] == pytest.approx((0.1 + 3) / 4)


def test_zones_are_eight_connected():
    counts, sizes = glszm(np.eye(8, dtype=np.int64))
    assert sizes.tolist() == [8, 56]  # both corners touch across the diagonal, which is one zone itself
    assert counts[:2].tolist() == [[0, 1], [1, 0]]


def test_zones_that_cross_stay_apart():
    counts, sizes = glszm(np.array([[0, 1], [1, 0]]))
    assert sizes.tolist() == [2]
    assert counts[:2, 0].tolist() == [1, 1]


def test_filters_by_closed_form():
    """A plane has no Laplacian and no mixed difference; its slope is halved in the details."""
    row, column = np.indices((40, 40))
    plane = 0.02 * (row - 20) + 0.01 * (column - 20)
    found = {name: image for name, (image, _) in filtered_images(plane).items()}
    assert list(found) == ["original", *(f"log-sigma-{s}-px" for s in LOG_SIGMAS)] + [
        f"wavelet-{band}" for band in ("LL", "LH", "HL", "HH")
    ]
    for sigma in LOG_SIGMAS:
        assert (
            np.abs(found[f"log-sigma-{sigma}-px"][16:24, 16:24]).max() < 1e-3
        )  # the sampled kernel does not sum to 0 exactly
    assert found["wavelet-HL"] == pytest.approx(0.01)
    assert found["wavelet-LH"] == pytest.approx(0.005)
    assert found["wavelet-HH"] == pytest.approx(0, abs=1e-12)
    assert found["wavelet-LL"] == pytest.approx((plane[1:, 1:] + plane[:-1, :-1]) / 2)


def test_an_edge_from_black_to_white_fits_the_range_of_every_scale():
    edge = np.where(np.arange(64) < 32, -1.0, 1.0) * np.ones((64, 1))
    for name, (image, (low, high)) in filtered_images(edge).items():
        if name.startswith("log"):
            assert low < image.min() < 0.75 * low
            assert 0.75 * high < image.max() < high


def test_the_least_noise_on_a_flat_region_is_no_texture():
    flat = -0.3 + 1e-6 * texture()
    for name, value in features(flat).items():
        if name.endswith("glcm_Contrast"):
            assert value == 0, name


def test_levels_are_fixed_and_not_of_the_image():
    assert discretise(np.array([[-1, -0.94, 0, 0.99, 1]]), (-1, 1)).tolist() == [[0, 0, 16, 31, 31]]
    assert discretise(np.array([[-3.0, 3.0]]), (-0.5, 0.5)).tolist() == [[0, 31]]
    image = texture()
    with_a_bright_pixel = image.copy()
    with_a_bright_pixel[0, 0] = 1
    before, after = features(image), features(with_a_bright_pixel)
    assert after["original_glcm_Contrast"] == pytest.approx(before["original_glcm_Contrast"], rel=0.05)
    assert features(image / 2)["original_glcm_Contrast"] < 0.4 * before["original_glcm_Contrast"]


def test_names_are_the_same_for_every_image_and_say_what_they_are():
    assert tuple(features(texture())) == feature_names()
    assert len(feature_names()) == len(set(feature_names())) == 8 * (17 + 14 + 10 + 10 + 5)
    assert {"original_glcm_Contrast", "log-sigma-2-px_glrlm_RunEntropy"} < set(feature_names())
    assert {name.count("_") for name in feature_names()} == {2}


def test_size_hardly_matters():
    """Twice the image of one texture: what sums over pixels in IBSI would double."""
    small, large = features(texture(1, (96, 64))), features(texture(2, (96, 128)))
    names = ("Energy", "Coarseness", "Busyness", "NonUniformityNormalized", "Percentage", "Entropy")
    for name in feature_names():
        if name.endswith(names):
            assert 0.8 < large[name] / small[name] < 1.25, name


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_a_flat_image_has_finite_features(value):
    found = features(np.full((16, 16), value))
    assert np.isfinite(list(found.values())).all()
    assert found["original_glcm_Correlation"] == 1
    assert found["original_firstorder_Entropy"] == 0


def test_channels_are_averaged():
    image = texture()
    colour = np.stack([image, image * 0.5, image * 0])
    assert features(colour) == pytest.approx(features(image * 0.5))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros(64), "must be (H, W) of 8 x 8 pixels at least, not (64,)"),
        (np.zeros((7, 64)), "not (7, 64)"),
        (np.full((16, 16), 3.0), "must lie in [-1, 1], not 3 to 3; normalise first"),
        (np.full((16, 16), np.nan), "must lie in [-1, 1]"),
    ],
)
def test_what_is_no_image_is_refused(image, words):
    with pytest.raises(ValueError) as told:  # noqa: PT011
        features(image)
    assert words in str(told.value)
