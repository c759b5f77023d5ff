import errno
import io
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import fields
from typing import get_args

import pytest
import torch
from tqdm import tqdm

from nvae.cli import arguments, datasets, errors, evaluate, quality
from nvae.cli.main import COMMANDS
from nvae.data.images import Data
from nvae.evaluation.quality import measure
from nvae.evaluation.quality.extractors import registry as extractors
from nvae.models.families import FAMILIES
from nvae.schema import DATASETS, NAMED_DATASETS, choices
from nvae.system.errors import Remedy, UserError


def exit_code(main, command=""):
    with pytest.raises(SystemExit) as ended:
        errors.run(main, command)
    return ended.value.code


def raising(error):
    def main():
        raise error

    return main


HELP = """
import contextlib, io, json, sys
from nvae.cli.main import console

texts = {}
for command in sys.argv[1:]:
    sys.argv[1:] = [*filter(None, [command]), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            console()
        except SystemExit as end:
            assert end.code == 0, command
    heavy = {"torch", "torchvision", "numpy", "matplotlib"} & set(sys.modules)
    assert not heavy, (command, heavy)
    texts[command] = " ".join(text.getvalue().split())
print(json.dumps(texts))
"""


def test_help_has_a_description_and_imports_no_torch(root):
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # which imports matplotlib
    arguments = [sys.executable, "-c", HELP, "", *COMMANDS]
    result = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    texts = json.loads(result.stdout)
    assert texts.pop("")
    assert list(texts) == list(COMMANDS)
    for command, text in texts.items():
        assert " ".join(COMMANDS[command].__doc__.split())[:40] in text


@pytest.mark.slow
def test_training_on_built_in_images_imports_no_torchvision(root):
    program = "import sys, nvae.training.loop, nvae.data.registry; assert 'torchvision' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_every_option_has_a_help_that_ends_with_its_default():
    for name, module in COMMANDS.items():
        parser = arguments.Parser()
        module.add_arguments(parser)
        for action in parser._actions[1:]:
            assert action.help, (name, action.dest)
            if action.option_strings and not action.required:
                assert action.help.endswith(")"), (name, action.option_strings)
                assert "(default: " in action.help, (name, action.option_strings)


def test_choices_are_those_of_the_library():
    """Lists that only `nvae.schema.choices` holds, and lists of what is registered."""
    listed = {
        "pixels": get_args(choices.Pixels),
        "part": get_args(choices.Part),
        "inline": get_args(choices.Inline),
        "animate": ("auto", *get_args(choices.AnimationFormat)),
        "protocol": tuple(evaluate.ESTIMATORS),
        "channels": (1, 3),
        "family": tuple(FAMILIES),
        "coarse_from": ("A", "B"),
        "fine_from": ("A", "B"),
    }
    found = set()
    for module in COMMANDS.values():
        parser = arguments.Parser()
        module.add_arguments(parser)
        for action in parser._actions:
            if action.choices is not None:
                found.add(action.dest)
                assert tuple(action.choices) == listed[action.dest], action.dest
    assert found == set(listed)
    assert set(evaluate.ESTIMATORS.values()) == set(get_args(choices.Estimator))
    assert ("self", *extractors.LOADERS) == get_args(choices.ExtractorName) == quality.EXTRACTORS
    assert measure.METRICS == get_args(choices.Metric) == quality.METRICS
    assert set(get_args(choices.Part)) < {field.name for field in fields(Data)}
    assert set(datasets.EXAMPLES) == set(DATASETS) - set(NAMED_DATASETS)


@pytest.mark.parametrize("text", ["-1", "1.5", "", "x", "²", "٣", "9" * 5000])
def test_natural_refuses_what_is_no_integer(text):
    with pytest.raises(ArgumentTypeError):
        arguments.natural(text)


def test_integer_has_bounds():
    assert [arguments.integer(1, 3)(text) for text in ("1", "3")] == [1, 3]
    for text in ("0", "4"):
        with pytest.raises(ArgumentTypeError):
            arguments.integer(1, 3)(text)


@pytest.mark.parametrize(
    ("text", "warns"),
    [("0,7", True), ("1,3", True), ("0.7,1", False), ("0", False), ("3", False), ("0,1,3", False), ("0,0.7", False)],
)
def test_factors_warn_of_a_decimal_comma(text, warns, capsys):
    assert arguments.factors(text) == [float(part) for part in text.split(",")]
    assert (text.replace(",", ".") in capsys.readouterr().err) == warns


def test_factors_repeat_a_number():
    assert arguments.factors("0.8x3,1,0.5x2") == [0.8, 0.8, 0.8, 1.0, 0.5, 0.5]
    for wrong in ("0.8x", "0.8x0", "x3", "0.8x2x2", "0.8x1001", "0.8x1.5"):
        with pytest.raises(ArgumentTypeError):
            arguments.factors(wrong)


def test_every_list_of_factors_warns_of_a_decimal_comma():
    for name, module in COMMANDS.items():
        parser = arguments.Parser()
        module.add_arguments(parser)
        for action in parser._actions:
            if "per scale" in (action.help or "") and action.dest != "latent_size":  # text of a key, read as YAML
                assert action.type is arguments.factors, (name, action.dest)


def test_find_model_prefers_files_then_checkpoints_then_results(folder):
    from nvae.cli.models import find_model

    (folder / "saved_weights").mkdir()
    assert find_model("a") == "a"
    for path in ("saved_weights/final_result_a.model", "saved_weights/a.checkpoint", "a"):
        (folder / path).touch()
        assert find_model("a") == path


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (UserError("key 3"), 2, "key 3"),
        (KeyboardInterrupt(), 130, ""),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "use_tensor_checkpoints"),
        (MemoryError(), 2, "batch_size"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "disk space"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), 2, "memory"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), 2, os.strerror(errno.ESTALE)),
        (FileNotFoundError(errno.ENOENT, "gone", "a.png"), 2, "a.png"),
    ],
)
def test_run_turns_errors_into_one_line_and_a_code(error, code, hint, capsys):
    assert exit_code(raising(error), "train") == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert hint in lines[0]


@pytest.mark.parametrize(
    ("command", "remedy", "flag"),
    [
        ("train", Remedy.START_OVER, "--fresh"),
        ("train", Remedy.DATASET_PATH, "--set"),
        ("evaluate", Remedy.DATASET_PATH, "--data"),
        ("sample", Remedy.DATASET_PATH, None),
    ],
)
def test_run_hints_name_the_flags_of_the_command(command, remedy, flag, capsys):
    exit_code(raising(UserError("a problem.", remedy)), command)
    words = capsys.readouterr().err.split("a problem.")[1].split()
    assert (flag in words) if flag else not words


def test_every_remedy_has_a_hint_for_the_commands_where_it_can_occur():
    """A remedy of training, of loading a data set, or of importing; evaluation cannot change the size of images."""
    with_data = {"train", "prepare", "datasets", "precompute", "evaluate", "quality"}
    commands = {
        Remedy.START_OVER: {"train"},
        Remedy.START_OVER_FROM_FILE: {"train"},
        Remedy.RUN_NAME: {"train"},
        Remedy.CHANGED_DATA: {"train"},
        Remedy.DATASET_PATH: with_data,
        Remedy.CONFIG_KEY: with_data,
        Remedy.IMAGE_SIZE: with_data - {"evaluate", "quality"},
        Remedy.MODEL_CONFIG: {"import"},
    }
    assert commands.keys() == set(Remedy)
    assert commands == {remedy: {name for name, hints in errors.HINTS.items() if remedy in hints} for remedy in Remedy}
    for name, hints in errors.HINTS.items():
        parser = arguments.Parser()
        COMMANDS[name].add_arguments(parser)
        for flag in re.findall("--[a-z-]+", " ".join(hints.values())):
            assert flag in parser._option_string_actions, (name, flag)


def test_run_memory_hint_names_what_the_command_has(capsys):
    exit_code(raising(MemoryError()), "sample")
    assert "batch_size" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EBADF, "a bug"), ValueError("a bug")])
def test_run_does_not_hide_bugs(error):
    with pytest.raises(type(error), match="a bug"):
        errors.run(raising(error))


class Broken:
    """A stream that fails from the second text on."""

    def __init__(self, error):
        self.error, self.texts = error, []

    def write(self, text):
        if self.texts:
            raise self.error
        self.texts.append(text)

    flush = write


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")])
def test_safe_stream_survives_its_loss(error, monkeypatch):
    stream = Broken(error)
    monkeypatch.setattr(sys, "stdout", stream)

    def main():
        for number in range(3):
            print(number, flush=True)
        return 7

    assert exit_code(main) == 7
    assert stream.texts == ["0"]
    assert sys.stdout is stream


def test_output_has_no_control_characters_but_those_of_progress_bars(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)

    def main():
        print("a\x1b]0;b\x07\rc\n\td")
        bar = tqdm(range(1), "outer", file=sys.stdout, position=0)
        tqdm(range(1), "inner", file=sys.stdout, position=1, leave=False).close()
        bar.close()

    exit_code(main)
    text, bars = stream.getvalue().split("d\n", 1)
    assert text == "a\\x1b]0;b\\x07\\rc\n\t"
    assert "\x1b[A" in bars
    assert "\r" in bars
    assert "\\" not in bars


@pytest.mark.slow
def test_run_ignores_an_unknown_plotting_backend(root, tmp_path):
    program = "import sys\nfrom nvae.cli.errors import run\n"
    program += "def main():\n  from matplotlib.figure import Figure\n  Figure().savefig('a.png')\nrun(main)"
    for backend, warns in (("nonsense", True), ("module://matplotlib_inline.backend_inline", False), ("agg", False)):
        environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(root)}
        arguments = [sys.executable, "-c", program]
        result = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert ("nonsense" in result.stderr) == warns


@pytest.mark.slow
def test_modules_of_the_working_directory_are_not_imported(start_process, tmp_path):
    """`python3 -m` looks for modules in the working directory first, which may be a folder of data from elsewhere."""
    for name in ("lmdb", "numpy", "torch", "yaml"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w').close()\n")
    process = start_process("-m", "nvae", "summary", "hvae", "--root", tmp_path / "here", cwd=tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lmdb.py", "numpy.py", "torch.py", "yaml.py"]
