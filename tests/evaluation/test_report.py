import json
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from PIL import Image

from nvae.evaluation.kl_chart import draw_bars
from nvae.evaluation.likelihood import Estimate, Evaluation
from nvae.evaluation.report import is_saved, report, report_name, report_path, save_report
from nvae.system.files import WriteError

METADATA = {"model": "a.model", "seed": 5}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture
def evaluation(model):
    return Evaluation(
        images=7,
        samples=5,
        estimator="importance_weighted",
        is_normalized=True,
        elbo=Estimate(-1234.5, 6.75),
        log_likelihood=Estimate(-1222.25, 3.5),
        reconstruction=-1200.0,
        kl_per_group=[1.5, 2.5, 3.5, 4.5],
        active_units_per_group=[1, 2, 3, 4],
        units_per_group=[8, 8, 32, 32],
        elbo_bits=Estimate(3.25, 0.125),
        log_likelihood_bits=Estimate(3.125, 0.0625),
    )


def test_report_holds_every_number(evaluation, model):
    page = report(evaluation, model, "images")
    rows = [line.split()[-4:] for line in page.splitlines()[-3:]]
    assert rows == [["4.00", "3", "of", "16"], ["8.00", "7", "of", "64"], ["12.00", "10", "of", "80"]]  # levels and all
    for number in ("-1234.50", "6.75", "-1222.25", "3.2500", "-1200.00", "1.50", "4.50", "12.00", "10 of 80"):
        assert number in page


def test_estimates_of_a_likelihood_that_is_not_normalized_are_no_bounds(evaluation, model, tmp_path):
    no_bound, published = evaluation._replace(is_normalized=False), evaluation._replace(estimator="analytic_kl")
    for kind, expected in ((evaluation, True), (no_bound, False), (published, False)):
        assert kind.is_bound is expected
        save_report(kind, model, tmp_path / "a.json", {})
        saved = json.loads((tmp_path / "a.json").read_text())
        assert (saved["is_bound"], saved["is_normalized"]) == (expected, kind.is_normalized)
    assert set(report(evaluation, model, "images").splitlines()) < set(report(no_bound, model, "images").splitlines())


@pytest.mark.parametrize("groups", [4, 20, 75])
def test_bars_have_a_tick_for_each_of_few_groups(groups):
    sizes = groups // 2, groups - groups // 2
    levels = [SimpleNamespace(groups=size, resolution=size, name="") for size in sizes]
    of_groups = [SimpleNamespace(level=level) for level in levels for _ in range(level.groups)]
    model = SimpleNamespace(levels=levels, groups=of_groups)
    axes = Figure().add_subplot()
    assert draw_bars(axes, model, [1.0] * groups) == [range(groups // 2), range(groups // 2, groups)]
    assert len(axes.patches) == groups
    assert len(axes.get_xticks()) == {4: 4, 20: 20, 75: 8}[groups]


def test_report_without_counted_units(evaluation, model, tmp_path):
    evaluation = evaluation._replace(active_units_per_group=None)
    assert " of " not in report(evaluation, model, "images")
    save_report(evaluation, model, tmp_path / "a.json", {})


def test_saved_report_has_the_metadata_in_both_files(evaluation, model, tmp_path):
    path = tmp_path / "new" / "a.b.json"
    save_report(evaluation, model, path, METADATA)
    content = json.loads((tmp_path / "new" / "a.b.json").read_text())
    assert content == METADATA | evaluation.to_dict()
    with Image.open(tmp_path / "new" / "a.b.png") as chart:
        assert {key: chart.text[key] for key in METADATA} == {"model": "a.model", "seed": "5"}
    assert sorted(path.name for path in path.parent.iterdir()) == ["a.b.json", "a.b.png"]


def test_is_saved_needs_both_files_and_the_same_metadata(evaluation, model, tmp_path):
    path = tmp_path / "a.json"
    assert not is_saved(path, METADATA)
    save_report(evaluation, model, path, METADATA)
    assert is_saved(path, METADATA)
    assert not is_saved(path, METADATA | {"seed": 6})
    (tmp_path / "a.png").unlink()
    assert not is_saved(path, METADATA)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "\x00"])
def test_is_saved_is_false_for_a_damaged_file(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "a.png").write_text("")
    assert not is_saved(tmp_path / "a.json", {})


def test_report_path_is_that_of_the_same_metadata_or_an_unused_one(evaluation, model, tmp_path):
    for seed, name in ((5, "a"), (6, "a_2"), (7, "a_3"), (6, "a_2")):
        metadata = METADATA | {"seed": seed}
        path = report_path(tmp_path, "a", metadata)
        assert path == tmp_path / f"{name}.json"
        save_report(evaluation, model, path, metadata)


def test_report_names_tell_evaluations_apart():
    names = {
        report_name(model, dataset, part, images, samples)
        for model in ("a", "b")
        for dataset in ("mnist", "cifar10")
        for part in ("training", "validation")
        for images in (10, 1000)
        for samples in (1, 5)
    }
    assert len(names) == 32


def test_folder_that_cannot_be_written_is_a_write_error(evaluation, model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        save_report(evaluation, model, tmp_path / "file" / "a.json", METADATA)
