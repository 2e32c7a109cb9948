import json

import pytest

from delineate.cli.segment import of_consensus, of_misfits


def run_of(output):
    return json.loads((output / "run.json").read_text())


def test_without_a_prompt_all_that_was_learnt_is_asked_and_said(delineate, pictures, model, tmp_path):
    usual = ["segment", "-i", pictures, "-o", tmp_path / "out", "-m", model, "-n", 1, "--no-pictures"]
    code, _, err = delineate(*usual)
    assert code == 0, err
    report = run_of(tmp_path / "out")
    assert report["request"]["prompts"] == ["all"]
    for case in report["cases"]:
        assert [target["target"] for target in case["targets"]] == ["liver", "spleen"]
    assert "case0, case1: asked for all that was learnt in any kind of scan: liver, spleen" in " ".join(err.split())
    code, _, err = delineate(*usual, "-p", "All", "--resume")
    assert [case["status"] for case in run_of(tmp_path / "out")["cases"]] == ["skipped", "skipped"]
    assert "liver, spleen" in err
    assert delineate(*usual, "-p", "liver", "--resume")[0] == 0  # another request
    assert [case["status"] for case in run_of(tmp_path / "out")["cases"]] == ["done", "done"]


@pytest.mark.parametrize("prompts", [["-p", "spleen,liver"], ["-p", "spleen", "-p", "liver"]], ids=str)
def test_a_list_with_commas_is_the_same_as_several_prompts(delineate, pictures, model, tmp_path, prompts):
    asked = ["segment", pictures / "case0.png", "-o", tmp_path, "-m", model, "-n", 1, "--no-pictures", *prompts]
    assert delineate(*asked)[0] == 0
    report = run_of(tmp_path)
    assert report["request"]["prompts"] == ["spleen", "liver"]
    assert [target["target"] for target in report["cases"][0]["targets"]] == ["spleen", "liver"]


@pytest.mark.parametrize(("given", "why"), [(["a.png", "-i", "b.png"], "not both"), ([], "give a scan")])
def test_a_scan_is_given_once(delineate, tmp_path, given, why):
    code, _, err = delineate("segment", *given, "-o", tmp_path / "out")
    assert code == 2
    assert why in " ".join(err.split())


def test_a_case_says_in_one_line_what_was_left_out_of_its_consensus():
    told = [{"target": "liver", "islands_ml": 0.605}, {"target": "spleen"}, {"target": "polyp", "islands_pixels": 12.0}]
    (line,) = of_consensus(told, "mean")
    assert line.endswith("liver 0.605 ml, polyp 12 pixels")
    assert of_consensus(told[1:2], "mean") == []


def test_staple_of_nested_proposals_is_told_and_other_fusions_are_not():
    told = [{"target": "liver", "nested": True}, {"target": "spleen", "nested": False}]
    (line,) = of_consensus(told, "staple")
    assert line.endswith("liver")
    assert of_consensus(told, "mean") == []


def test_house_names_the_model_that_ships_wherever_one_is_asked_for(delineate, model, tmp_path, monkeypatch):
    monkeypatch.setattr("delineate.model_folder.house_folder", lambda: model)
    monkeypatch.setattr("delineate.storage.shipped.house_folder", lambda: model)
    monkeypatch.chdir(tmp_path)
    code, out, _ = delineate("prompts", "-m", "house", "--json")
    assert code == 0
    assert [concept["name"] for concept in json.loads(out)["concepts"]] == ["liver", "spleen"]
    code, _, err = delineate("calibrate", "house", "data")
    assert code == 2
    assert "give --output" in " ".join(err.split())
    (tmp_path / "house").mkdir()  # a folder of that name comes first
    assert delineate("prompts", "-m", "house")[0] == 6


def test_the_model_that_ships_can_be_named_in_segment(delineate, pictures, model, tmp_path, monkeypatch):
    monkeypatch.setattr("delineate.model_folder.house_folder", lambda: model)
    monkeypatch.chdir(tmp_path)
    asked = ["segment", pictures / "case0.png", "-p", "liver", "-n", 1, "--no-pictures", "-o"]
    for output, more in (("a", ["-m", "house"]), ("b", [])):
        assert delineate(*asked, output, *more)[0] == 0
    assert run_of(tmp_path / "a")["model_sha256"] == run_of(tmp_path / "b")["model_sha256"]


def test_of_many_names_that_do_not_fit_a_scan_one_is_told():
    targets = [{"prompt": f"t{k}", "misfit": "unlike any"} for k in range(20)]
    cases = [
        {"case": "a", "targets": targets},
        {"case": "b", "targets": targets},
        {"case": "c", "targets": targets[:2]},
    ]
    assert of_misfits(cases, anyway=False) == [
        "a, b: 't0': unlike any (and 19 more names); --anyway asks all the same",
        "c: 't0': unlike any; --anyway asks all the same",
        "c: 't1': unlike any; --anyway asks all the same",
    ]
