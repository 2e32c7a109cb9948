"""The review page as a person uses it: on a real CT with the model that ships."""

import io
import json
import re

import nibabel
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan

pytestmark = pytest.mark.browser


def open_page(page: Page, url: str) -> None:
    """The page, once its first scan is shown."""
    page.goto(url)
    page.wait_for_selector("body[data-ready]")


def outline(page: Page, words: str) -> None:
    """Type a prompt and wait for its answer."""
    page.fill("#prompt", words)
    page.click("#outline")
    page.wait_for_selector(".answer.now")
    expect(page.locator("#progress")).to_be_hidden()


def layers_of(page: Page) -> list[dict]:
    """The layers as the server has them."""
    case = page.evaluate("document.body.dataset.ready")
    return page.evaluate("async (id) => (await (await fetch(`/api/cases/${id}`)).json()).layers", case)


def settled(page: Page) -> None:
    """Every action has been acknowledged."""
    page.wait_for_selector("body[data-pending='0']")


def box_of(page: Page, selector: str = "#overlay") -> tuple[float, float, float, float]:
    """The box of an element on the page: left, top, width, height."""
    box = page.locator(selector).bounding_box()
    assert box is not None
    return box["x"], box["y"], box["width"], box["height"]


def under(page: Page) -> tuple[int, int, int]:
    """The voxel that the readout names for the pointer."""
    i, j, k = re.search(r"voxel (\d+), (\d+), (\d+)", page.inner_text("#readout")).groups()
    return int(i), int(j), int(k)


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """Drag over points of the page."""
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    settled(page)


def test_outline_pick_paint_undo_save_reload(page, serve, ct, tmp_path, screenshot):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    assert "token" not in page.url  # it is in a cookie now, not in the history

    page.click("#prompt")
    page.keyboard.type("liv")
    expect(page.locator("#suggestions li").first).to_contain_text("liver")
    page.keyboard.press("ArrowDown")
    screenshot(page, "review-typing")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer.now .outcome.found")
    expect(page.locator("#progress")).to_be_hidden()
    assert page.locator(".answer.now .proposal").count() >= 2  # the consensus, and a proposal at least
    screenshot(page, "review-answer")

    page.keyboard.press("Enter")  # pick the consensus
    page.wait_for_selector("#layers li.now[data-layer]")
    settled(page)
    (picked,) = layers_of(page)
    assert picked["name"] == "liver"
    assert picked["voxels"] > 1000

    page.keyboard.press("e")  # erase a hole in what was picked
    left, top, width, height = box_of(page)
    at = (left + 0.31 * width, top + 0.5 * height)
    page.mouse.move(*at)
    voxel = under(page)
    stroke(page, at, (at[0] + 12, at[1] + 6))
    page.keyboard.press("b")
    stroke(page, (at[0] + 60, at[1] + 130), (at[0] + 90, at[1] + 130))
    (painted,) = layers_of(page)
    assert painted["voxels"] != picked["voxels"]
    screenshot(page, "review-painted")

    for _ in range(3):
        page.keyboard.press("z")
        settled(page)
    assert layers_of(page) == []  # the pick was undone too
    for _ in range(2):
        page.keyboard.press("Shift+Z")
        settled(page)
    (erased,) = layers_of(page)
    page.keyboard.press("s")
    expect(page.locator("#saved")).to_contain_text("liver.nii.gz")

    (path,) = tmp_path.rglob("saved/liver.nii.gz")
    written, scan = nibabel.load(path), nibabel.load(ct)
    mask = np.asarray(written.dataobj).astype(bool)
    assert np.allclose(written.affine, scan.affine)
    assert mask.sum() == erased["voxels"]
    assert not mask[voxel]  # what was under the pointer on the screen is what was erased in the file
    provenance = json.loads(path.with_name("liver.json").read_text())
    assert [answer["prompt"] for answer in provenance["answers"]] == ["liver"]
    assert [edit["kind"] for edit in provenance["edits"]] == ["pick", "paint"]

    page.reload()
    page.wait_for_selector("body[data-ready]")
    (again,) = layers_of(page)
    assert again == erased | {"saved": True}
    expect(page.locator("#layers li")).to_contain_text("saved")
    expect(page.locator(".answer.now")).to_contain_text("liver")


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "oblique"])
def test_what_is_under_the_pointer_is_the_voxel_that_is_named(codes, page, serve, tmp_path):
    """A bright box in a dark volume: the screen is bright just where the readout names a voxel of the box."""
    shape, spacing = (40, 50, 30), (2.0, 1.5, 3.0)
    if codes == "oblique":
        turn = np.radians(12)
        affine = np.diag([*spacing, 1.0])
        affine[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ affine[:2, :2]
    else:
        order = nibabel.orientations.axcodes2ornt(tuple(codes))
        affine = np.zeros((4, 4))
        for axis, (world, sign) in enumerate(order):
            affine[int(world), axis] = sign * spacing[axis]
        affine[:, 3] = [-20, 30, 10, 1]
    box = np.zeros(shape, dtype=bool)
    box[8:27, 15:43, 5:19] = True
    scan = write_scan(tmp_path / "box.nii.gz", Scan(np.where(box, 900.0, 100.0), affine, "MR"))
    server = serve(scan, "-o", tmp_path / "out")
    open_page(page, server.url)
    page.select_option("#window", "whole range")
    left, top, width, height = box_of(page)
    compared = {True: 0, False: 0}
    patch = screen(page)
    for x, y in np.random.default_rng(0).uniform((left, top), (left + width, top + height), (150, 2)):
        page.mouse.move(x, y)
        told = page.inner_text("#readout")
        value = float(re.search(r"value ([-\d.]+)", told).group(1))
        if not told.startswith("voxel"):  # beside the scan the readout is the crosshair's
            continue
        voxel = under(page)
        edge = np.array(voxel)
        around = box[tuple(slice(max(0, e - 1), e + 2) for e in edge)]
        if around.all() or not around.any():  # not at the border of the box, where the screen interpolates
            bright = bool(box[voxel])
            assert value == (900 if bright else 100)
            seen = patch(x, y)
            if np.ptp(seen) < 20:  # neither crosshair nor letters
                assert (seen.mean() > 128) == bright, (x, y, voxel)
                compared[bright] += 1
    assert min(compared.values()) > 8


def screen(page: Page):
    """The colours of the page around a point, 15 x 15 x 3."""
    page.mouse.move(2, 2)
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    return lambda x, y: pixels[max(0, int(y) - 7) : int(y) + 8, max(0, int(x) - 7) : int(x) + 8].astype(int)


def test_an_unknown_word_is_answered_kindly(page, serve, ct, tmp_path, screenshot):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    outline(page, "splen")  # a typo of a known name is understood
    outline(page, "kidney")  # two questions, one after another
    for name in ("right kidney", "left kidney"):
        expect(page.locator(f".answer b:text-is('{name}')")).to_have_count(1)
    outline(page, "renal artery")
    expect(page.locator(".answer.now .outcome")).to_have_text("unknown prompt")
    expect(page.locator(".answer.now .chips")).to_contain_text("left kidney")
    screenshot(page, "review-unknown")
    page.click(".answer.now .chips button:text-is('left kidney')")
    expect(page.locator(".answer.now b")).to_have_text("left kidney")


def test_what_was_not_learnt_in_such_scans_is_drawn_only_if_one_insists(page, serve, ct, tmp_path, screenshot):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    outline(page, "skin lesion")
    expect(page.locator(".answer.now .outcome")).to_have_text("not learnt here")
    expect(page.locator(".answer.now")).to_contain_text("this scan is taken for CT of")
    screenshot(page, "review-not-learnt")
    page.click(".answer.now button:text-is('Draw it all the same')")
    expect(page.locator(".answer.now .outcome")).to_have_text(re.compile("found|likely absent"))
    expect(page.locator(".answer.now")).to_contain_text("Drawn all the same: learnt in dermoscopy")
    screenshot(page, "review-drawn-anyway")


def test_a_running_outline_can_be_cancelled(page, serve, ct, tmp_path):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    page.fill("#proposals", "64")
    page.fill("#prompt", "liver")
    page.click("#outline")
    page.wait_for_selector("#progress:not([hidden])")
    page.click("#cancel")
    expect(page.locator("#notice")).to_contain_text("cancelled")
    assert page.locator(".answer").count() == 0
    page.fill("#proposals", "2")
    outline(page, "liver")
    expect(page.locator(".answer.now .outcome")).to_have_text("found")


def test_the_server_dies_and_nothing_is_lost(page, serve, ct, tmp_path):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    page.keyboard.press("n")
    page.wait_for_selector("#layers li.now[data-layer]")
    left, top, width, height = box_of(page)
    stroke(page, (left + 0.3 * width, top + 0.4 * height), (left + 0.35 * width, top + 0.45 * height))
    (before,) = layers_of(page)
    assert before["voxels"] > 0
    server.kill()
    page.mouse.move(left + 0.3 * width, top + 0.6 * height)
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#notice")).to_contain_text("nothing is lost")
    page.said.clear()  # the browser itself reports the refused connections
    page.goto("about:blank")
    again = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, again.url)
    assert layers_of(page) == [before]


def test_clicks_move_the_answer(page, serve, ct, tmp_path, screenshot):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    outline(page, "liver")
    first = page.inner_text(".answer.now p.small >> nth=0")
    page.keyboard.press("m")
    left, top, width, height = box_of(page)
    at = (left + 0.25 * width, top + 0.45 * height)
    stroke(page, at)
    stroke(page, (at[0] + 20, at[1]))  # at once: the first is still being answered
    expect(page.locator(".answer.now")).to_contain_text("0 inside, 2 outside")
    expect(page.locator("#progress")).to_be_hidden()
    screenshot(page, "review-clicks")
    assert page.inner_text(".answer.now p.small >> nth=1") != first
    page.keyboard.press("Backspace")
    expect(page.locator(".answer.now")).to_contain_text("0 inside, 1 outside")
    page.keyboard.press("Backspace")
    expect(page.locator(".answer.now")).not_to_contain_text("outside")


def test_a_colour_image_and_a_tablet(page, serve, shared_data, tmp_path, screenshot):
    image = next(iter(sorted((shared_data / "isic2018" / "images").iterdir())))
    server = serve(image, "-o", tmp_path)
    page.set_viewport_size({"width": 820, "height": 1100})
    open_page(page, server.url)
    assert page.locator("#views-label").is_hidden()
    outline(page, "skin lesion")
    page.click(".answer.now .proposal button.take >> nth=0")
    page.wait_for_selector("#layers li.now[data-layer]")
    screenshot(page, "review-tablet")
    page.click("#save")
    expect(page.locator("#saved")).to_contain_text("skin_lesion.png")
    for name in ("#outline", "#save", "#undo", "#overlay"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 820


def test_the_help_sheet_tells_every_shortcut(page, serve, ct, tmp_path, screenshot):
    server = serve(ct, "-o", tmp_path, "--modality", "CT")
    open_page(page, server.url)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    for word in ("brush", "undo", "save", "window"):
        expect(page.locator("#keys")).to_contain_text(word)
    screenshot(page, "review-help")


def test_every_scan_of_a_folder_has_work_of_its_own(page, serve, tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("first", (30, 40, 12)), ("second", (24, 24, 20))):
        values = rng.integers(0, 1000, shape).astype(np.float32)
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", Scan(values, np.diag([-2.0, -2, 3, 1]), "MR"))
    server = serve(tmp_path / "scans", "-o", tmp_path / "out")
    open_page(page, server.url)
    page.keyboard.press("n")
    page.wait_for_selector("#layers li.now[data-layer]")
    left, top, width, height = box_of(page)
    stroke(page, (left + 0.3 * width, top + 0.3 * height), (left + 0.35 * width, top + 0.3 * height))
    (painted,) = layers_of(page)
    assert painted["voxels"] > 0
    page.select_option("#case", label="second")
    page.wait_for_selector("body[data-ready=c1]")
    expect(page.locator("#facts")).to_contain_text("24 × 24 × 20")
    assert layers_of(page) == []
    page.select_option("#case", label="first")
    page.wait_for_selector("body[data-ready=c0]")
    assert layers_of(page) == [painted]
