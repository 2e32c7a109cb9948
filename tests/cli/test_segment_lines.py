from delineate.cli.segment import of_consensus


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
