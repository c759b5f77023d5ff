import ctypes

import pytest
import torch

from nvae.system import devices
from nvae.system.devices import available_bytes, choose_device, half_dtype, set_fast_defaults
from nvae.system.errors import UserError


@pytest.mark.parametrize(
    ("gpus", "xpus", "mps", "name", "expected"),
    [
        (2, 0, False, None, "cuda:0"),
        (2, 0, False, "cuda", "cuda:0"),
        (2, 0, False, "cuda:1", "cuda:1"),
        (2, 0, False, "cpu", "cpu"),
        (2, 2, False, None, "cuda:0"),
        (2, 2, False, "xpu", "xpu:0"),
        (0, 2, False, None, "xpu:0"),
        (0, 2, False, "xpu:1", "xpu:1"),
        (0, 0, True, None, "mps"),
        (0, 0, False, None, "cpu"),
    ],
)
def test_choose_device_prefers_the_fastest(monkeypatch, gpus, xpus, mps, name, expected):
    for module, count in ((torch.cuda, gpus), (torch.xpu, xpus)):
        monkeypatch.setattr(module, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(module, "device_count", lambda count=count: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device(name) == torch.device(expected)


def test_choose_device_gives_each_process_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name, 1) for name in (None, "cuda", "cuda:0")] == [
        torch.device(name) for name in ("cuda:1", "cuda:1", "cuda:0")
    ]
    with pytest.raises(UserError, match="'cuda:2'.*cuda:0.*process"):
        choose_device(None, 2)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:3", "xpu:99"])
def test_choose_device_refuses_a_missing_device(name):
    with pytest.raises(UserError, match=f"'{name}'.*cpu"):
        choose_device(name)


@pytest.mark.parametrize(("has_amx", "expected"), [(True, torch.bfloat16), (False, None)])
def test_half_dtype_of_a_cpu_is_bfloat16_with_fast_instructions_only(monkeypatch, has_amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert half_dtype(torch.device("cpu")) is expected


def test_half_dtype_of_this_cpu_needs_no_private_name_that_pytorch_lacks():
    assert half_dtype(torch.device("cpu")) in (torch.bfloat16, None)


@pytest.mark.parametrize(
    ("cpus", "variable", "threads"), [(2, None, 2), (64, None, 8), (2, "8", 8)], ids=["few", "many", "chosen"]
)
def test_set_fast_defaults_starts_no_more_threads_than_cpus(monkeypatch, cpus, variable, threads):
    set_threads = [8]
    monkeypatch.setattr(devices, "cpu_count", lambda: cpus)
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    set_fast_defaults()
    assert set_threads[-1] == threads


def test_set_fast_defaults_works_without_glibc(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    set_fast_defaults()
    assert torch.backends.cudnn.benchmark


def test_available_bytes_of_an_xpu_are_not_those_of_the_cpu():
    assert available_bytes(torch.device("xpu:0")) is None


def test_available_bytes_of_this_machine_are_plausible():
    assert 2**28 < available_bytes(torch.device("cpu")) < 2**50
