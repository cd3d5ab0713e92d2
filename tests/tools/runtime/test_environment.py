"""A GPU that torch cannot use: refused in one line by every command, unless it is hidden or the CPU asked for."""

import re
import sys
import warnings

import pytest
import torch

import main
import test as scoring
import tools.bench
import visual
from tools.api import load
from tools.base.errors import ResourceError
from tools.commands import bench, compare, predict
from tools.runtime import environment
from tools.runtime.distributed import Ranks, choose_device

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_120", "compute_120"]
TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp)"
)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """The files of an NVIDIA driver with a GTX 1080, of which this machine's torch sees nothing."""
    folder = tmp_path / "proc" / "driver" / "nvidia"
    (folder / "gpus" / "0000:01:00.0").mkdir(parents=True)
    module = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    (folder / "version").write_text(module + "GCC version:  gcc version 12.2.0\n")
    card = "Model: \t\t NVIDIA GeForce GTX 1080\nIRQ:   \t\t 130\nDevice Minor: \t 0\n"
    (folder / "gpus" / "0000:01:00.0" / "information").write_text(card)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return folder


@pytest.fixture
def gtx_1080(monkeypatch, driver):  # noqa: ARG001
    """The same GPU, seen by a torch that was built for newer ones."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: WHEEL)


def commands(tiny, dataset, trained, folder):
    """Every command that computes with a model on a GPU, and its arguments."""
    data, best = ["--data-path", dataset], trained / "best.pth"
    training = ["--cfg", tiny, *data, "--output", folder / "out"]
    return [
        (main.main, training),
        (main.main, [*training, "--check"]),
        (main.main, [*training, "--throughput"]),
        (main.main, [*training, "--eval", "--resume", best]),
        (scoring.main, ["--resume", best, *data, "--to", folder / "to"]),
        (visual.main, ["--resume", best, *data, "--examples", "1", "--to", folder / "to"]),
        (predict.main, [dataset / "test", "--resume", best]),
        (compare.main, [best, best, *data]),
        (bench.main, ["model", "--size", "toy", "--rounds", "1"]),
        (bench.main, ["memory", "--size", "toy"]),
    ]


def forget_the_device_of_benchmarks(monkeypatch):
    """They choose it when they are imported."""
    for name in ("peers", "model", "memory"):
        monkeypatch.delitem(sys.modules, f"tools.bench.{name}", raising=False)
        monkeypatch.delattr(tools.bench, name, raising=False)


@pytest.mark.usefixtures("driver")
def test_every_command_refuses_a_gpu_that_torch_does_not_see(refused, monkeypatch, tiny, dataset, trained, tmp_path):
    def warn_of_the_driver():
        warnings.warn(TOO_OLD, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warn_of_the_driver)
    words = (f"torch {torch.__version__}", "GTX 1080 (driver 535.183.01)", "too old (found version 12020); update")
    for command, argv in commands(tiny, dataset, trained, tmp_path):
        forget_the_device_of_benchmarks(monkeypatch)
        refused(command, argv, 5, *words, "--device cpu")
    with pytest.raises(ResourceError, match="too old"):
        load(trained)
    assert load(trained, device="cpu")


@pytest.mark.usefixtures("gtx_1080")
def test_every_command_refuses_a_gpu_that_torch_has_no_code_for(refused, monkeypatch, tiny, dataset, trained, tmp_path):
    words = (f"torch {torch.__version__}", "GTX 1080 (driver 535.183.01)", "sm_90a", "capability 6.1", "sm_61")
    for command, argv in commands(tiny, dataset, trained, tmp_path):
        forget_the_device_of_benchmarks(monkeypatch)
        refused(command, argv, 5, *words, "--device cpu")


@pytest.mark.usefixtures("driver")
def test_the_cpu_is_used_when_asked_for(monkeypatch, dataset, trained, tmp_path):
    flags = ["--resume", trained / "best.pth", "--data-path", dataset, "--to", tmp_path / "to", "--device", "cpu"]
    assert scoring.main([str(flag) for flag in flags]) == 0
    assert choose_device(Ranks(), "cpu").type == "cpu"
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose_device(Ranks()).type == "cpu"
    for shown in ("0", "0,1", "GPU-5f1c"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        with pytest.raises(ResourceError, match="torch does not say why; see whether nvidia-smi can"):
            choose_device(Ranks())


@pytest.mark.usefixtures("driver")
def test_a_gpu_is_known_by_its_files_or_by_torch(tmp_path, monkeypatch):
    with pytest.raises(ResourceError, match=r"GTX 1080.*built without CUDA; install a torch with CUDA"):
        environment.check_visible("torch 2.14.1+cpu", None, "")
    monkeypatch.setattr(environment, "ROOT", tmp_path / "elsewhere")
    environment.check_visible("torch 2.14.1+cpu", None, "")
    with pytest.raises(ResourceError, match=re.escape("cannot use the GPU (driver unknown): CUDA unknown error; ")):
        environment.check_visible("torch", "13.0", "CUDA unknown error")
    (tmp_path / "elsewhere" / "dev").mkdir(parents=True)
    (tmp_path / "elsewhere" / "dev" / "nvidia0").touch()
    with pytest.raises(ResourceError, match="cannot use /dev/nvidia0 "):
        environment.check_visible("torch", "13.0", "")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0), (12, 1), (13, 0)])
def test_gpus_that_a_wheel_has_code_for(capability):
    environment.check_architecture("GPU", capability, "torch", WHEEL)


@pytest.mark.parametrize("capability", [(5, 2), (7, 0), (9, 1), (10, 0)])
def test_gpus_that_a_wheel_has_no_code_for(capability):
    with pytest.raises(ResourceError, match=rf"built for sm_75.* compute capability {capability[0]}\.{capability[1]}"):
        environment.check_architecture("GPU", capability, "torch", WHEEL)
    with pytest.raises(ResourceError, match="built for no GPU"):
        environment.check_architecture("GPU", capability, "torch", [])


@pytest.mark.usefixtures("gtx_1080")
def test_an_amd_gpu_is_not_compared_with_cuda_architectures(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose_device(Ranks()).type == "cuda"
