"""What this machine, or whoever starts the processes, cannot do."""

import contextlib
import importlib.util
import socket
import sys

import pytest
import torch

from src.attention import backends
from src.attention.triton import availability
from tests.bad.door import Bad, patched

CPU = {"CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
NODES = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0"}


@contextlib.contextmanager
def port_in_use(folder):
    """MASTER_PORT is one that another process listens on."""
    with socket.create_server(("", 0)) as taken, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        yield


def fake_gpu(*more, capability=(9, 0)):
    """A CUDA GPU of this capability, as far as it is asked before anything is computed."""
    version = torch.version.cuda or "13.0"
    return patched(
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "get_device_capability", lambda device: capability),
        (torch.version, "cuda", version),
        (backends, "triton_problem", availability.problem),
        *more,
    )


def on_gpu(arguments, sentence, *more, env=None, **changes):
    return Bad(f"train logger=csv {arguments}", sentence, env=env or {}, around=fake_gpu(*more, **changes))


def under(launcher, arguments, sentence, **changes):
    """As the first of the processes that torchrun or srun started; nobody listens to what it publishes."""
    alone = patched((sys.modules["src.train"], "publish", lambda *args: None))
    return Bad(f"train logger=csv {arguments}", sentence, env={**CPU, **launcher, **changes}, around=alone)


def on_cpu(arguments, sentence, **env):
    return Bad(f"train logger=csv {arguments}", sentence, env={**CPU, **env})


no_package = (importlib.util, "find_spec", lambda name, package=None: None)
no_headers = (availability.sysconfig, "get_paths", lambda scheme: {"include": "/nowhere"})

TABLE = {
    "fp16 on a CPU": on_cpu("precision=fp16", "precision=fp16 needs a GPU: on a CPU take precision=bf16"),
    "GPU asked for, none there": on_cpu("trainer.accelerator=gpu", "trainer.accelerator=gpu needs a CUDA GPU"),
    "Triton on a CPU": on_cpu("attention.backend=triton", "attention.backend=triton cannot run here: Triton runs on G"),
    "fused blocks on a CPU": on_cpu("model.backend=fused", "model.backend=fused cannot run here: .*take eager or auto"),
    "bf16 gradients between CPUs": on_cpu(
        "trainer.devices=2 trainer.gradient_compression=bf16", "trainer.gradient_compression=bf16 needs GPUs"
    ),
    "fp16 sharded": on_cpu("precision=fp16 trainer.strategy=fsdp2", "precision=fp16 does not go with trainer.strat"),
    "more devices than GPUs": on_gpu(
        "trainer.devices=2 trainer.accelerator=gpu", "trainer.devices must be at most the 1 GPUs of this machine"
    ),
    "GPU of 2017 (sm_70), Triton asked for": on_gpu(
        "attention.backend=triton trainer.accelerator=gpu",
        r"attention.backend=triton cannot run here: .*capability 8.0 \(Ampere\) or newer, found 7.0; take torch",
        capability=(7, 0),
    ),
    "GPU of 2017 (sm_70), fused blocks asked for": on_gpu(
        "model.backend=fused trainer.accelerator=gpu",
        "model.backend=fused cannot run here: .*found 7.0; take eager or auto",
        capability=(7, 0),
    ),
    "no C compiler": on_gpu(
        "attention.backend=triton trainer.accelerator=gpu",
        "attention.backend=triton cannot run here: Triton needs a C compiler and found neither gcc nor clang",
        env={"CC": None, "PATH": "/nowhere"},
    ),
    "CC is no program": on_gpu(
        "attention.backend=triton trainer.accelerator=gpu",
        "attention.backend=triton cannot run here: Triton needs a C compiler, and CC=nowhere-cc is none",
        env={"CC": "nowhere-cc"},
    ),
    "no C headers of Python": on_gpu(
        "attention.backend=triton trainer.accelerator=gpu",
        "attention.backend=triton cannot run here: Triton needs Python's C headers",
        no_headers,
        env={"CC": None, "CPATH": None, "C_INCLUDE_PATH": None},
    ),
    "Triton is not installed": on_gpu(
        "attention.backend=triton trainer.accelerator=gpu",
        "attention.backend=triton cannot run here: Triton is not installed",
        no_package,
    ),
    "torchrun with another number": under(
        TORCHRUN, "", r"trainer.devices \* trainer.num_nodes must be the 4 processes that torchrun started"
    ),
    "torchrun with a word for a number": under(
        TORCHRUN, "", "WORLD_SIZE must be a whole number, found 'four'", WORLD_SIZE="four"
    ),
    "a sweep under torchrun": Bad(
        "train -m seed=1 logger=csv",
        "a sweep .* starts the processes of each job itself",
        env=TORCHRUN,
    ),
    "srun without tasks a node": under(
        SRUN, "trainer.devices=2", "srun must be told --ntasks-per-node=2", SLURM_NTASKS_PER_NODE=None
    ),
    "two machines, no meeting place": on_cpu(
        "trainer.num_nodes=2", "trainer.num_nodes=2 needs torchrun or srun, or MA", **dict.fromkeys(NODES)
    ),
    "meeting place without a port": on_cpu(
        "trainer.num_nodes=2", "MASTER_PORT must be a whole number, found 'ssh'", **{**NODES, "MASTER_PORT": "ssh"}
    ),
    "machine number beyond them": on_cpu(
        "trainer.num_nodes=2", "NODE_RANK must be below trainer.num_nodes=2, found 2", **{**NODES, "NODE_RANK": "2"}
    ),
    "meeting place in use": Bad(
        "train trainer.num_nodes=2 logger=csv",
        r"MASTER_PORT=\d+ cannot be used on this machine \(Address already in use\): take another",
        env={**CPU, **NODES},
        around=port_in_use,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_is_refused_in_a_sentence_and_damages_nothing(name, refused):
    refused(TABLE[name], name)


@pytest.mark.parametrize(("capability", "env"), [((7, 0), {}), ((9, 0), {"CC": "nowhere-cc"})], ids=["sm_70", "no CC"])
def test_auto_takes_another_backend_there_and_says_which(capability, env, tmp_path, monkeypatch):
    """``auto`` is PyTorch's backend where Triton's cannot run; ``src.job`` logs the name and the reason."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    layer = attend_layer()
    with fake_gpu(capability=capability)(tmp_path):
        gpu = torch.device("cuda")
        assert backends.resolve_backend("auto", layer, gpu) == "torch"
        assert backends.triton_problem(gpu)
        with pytest.raises(ValueError, match="backend triton is not available"):
            backends.resolve_backend("triton", layer, gpu)


def attend_layer():
    from src.attention import Pattern

    return Pattern(name="strided", stride=4, summary=2, mode="merged", distinct=True, interleave=(1, 1)).layer(2)


def test_here_a_gpu_with_all_it_needs_is_taken(tmp_path):
    """The fake GPU is not what the rows above are refused for."""
    with fake_gpu()(tmp_path):
        assert backends.resolve_backend("auto", attend_layer(), torch.device("cuda")) == "triton"
