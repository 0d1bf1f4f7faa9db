"""``debug=profile``: what it leaves, and what it refuses."""

import gzip
import json

import pytest

from src.callbacks.profile import kind_of_work
from tests.tiny_runs import TINY, command, corpus, only_run


def test_profile_leaves_a_trace_and_a_table(tmp_path):
    few = ("debug=profile", "debug.trace_after=2", "debug.trace_steps=2", "trainer.max_steps=5", "data.micro_batch=2")
    done = command("train", *TINY, *few, f"data.path={corpus(tmp_path)}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path) / "profile"
    table = (folder / "table.txt").read_text()
    assert table.splitlines()[0].startswith("CPU operators")
    assert "matrix products" in table and "optimizer" in table
    assert table.strip() in done.stdout
    with gzip.open(folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    adam = [event for event in events if "_fused_adamw_" in event.get("name", "")]
    groups = 2  # decayed weights and others
    assert len(adam) == 2 * groups, "one optimizer step a traced step"


def test_a_run_too_short_for_its_profile_is_refused(tmp_path):
    done = command("train", *TINY, "debug=profile", f"data.path={corpus(tmp_path)}", folder=tmp_path)
    assert done.returncode == 2
    assert "error: trainer.max_steps must be at least 14 for debug=profile" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("window_forward", "attention"),
        ("column_backward", "attention"),
        ("column_sums", "bias sums"),
        ("add_norm_backward", "norm, dropout, residual"),
        ("gelu_backward", "activation"),
        ("nats_forward", "loss and embedding"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer and clipping"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("void at::native::vectorized_layer_norm_kernel<float>", "norm, dropout, residual"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
        ("triton_poi_fused_add_mul_3", "fused by torch.compile"),
        ("something else", "other"),
    ],
)
def test_kinds_of_work(name, kind):
    assert kind_of_work(name) == kind
