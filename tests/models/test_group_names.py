from nvae.models.group_names import first_groups_name, group_names, groups_per_level, level_name, position_name


def test_groups_are_named_by_number_and_level(make_model):
    model = make_model()
    sides = [group.level.resolution for group in model.groups]
    assert group_names(model) == [f"{i}: {side}x{side}" for i, side in enumerate(sides, 1)]
    assert groups_per_level(model) == [range(2), range(2, 4)]
    assert first_groups_name(model, 3) == "3 of 4"
    assert position_name(model.groups[1], 1, 2) == "row 2, column 3"


def test_context_has_a_name(make_dvp):
    model = make_dvp()
    assert level_name(model.levels[0]) == "context 3x3"
    assert group_names(model)[0] == "1: context 3x3"
    assert [first_groups_name(model, count) for count in (0, 1, 3)] == ["none", "context + 0 of 3", "context + 2 of 3"]
    assert position_name(model.groups[0], 1, 2) == "coefficient 2, 3"
