"""What wandb gets of a sweep: a run for each job, one group, names, columns, exit codes; and the dashboard of it."""

import json
import re
import signal
from pathlib import Path

import pytest

from scripts.dashboard import Wanted, of_sweep, workspace
from scripts.dashboard import main as dashboard
from scripts.dashboard import sent as view_of
from src.callbacks import samples
from src.loggers.build import as_number
from src.sweep.wandb_folder import gather
from tests.sweep.test_sweep import LONG, begun, steps, swept, wait_for
from tests.tiny_runs import summary
from tests.wandb_files import Sent, sent

WANDB = ("logger.kind=wandb", "hydra.launcher.name=s", "hydra.launcher.slots=2")
NOT_HERE = {"train/peak_memory_gib", "train/loss_scale", "samples/pictures"}  # of GPUs, of pictures
NAME = r'"(?:summary:)?((?:train|val|test|model|data|samples|attention)/\w+)"'  # of a figure, in the JSON of panels
SOURCES = Path(samples.__file__).parents[1]


def of_wandb(run: Path) -> Sent:
    (folder,) = run.glob("wandb/offline-run-*")
    return sent(folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """A sweep of two jobs: one finishes, one fails, its loss not being finite."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = ("optimizer.learning_rate=0.005,1e30", "watch.nonfinite_steps=3", "trainer.peak_tflops=1")
    shown = ("logger.sample_bytes=8", "logger.attention_picture=true", "logger.tags=[mine]")
    done = swept(folder, *grid, *shown, *WANDB)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "wandb leet runs/sweeps/s/wandb" in done.stdout
    return folder / "runs" / "sweeps" / "s"


@pytest.fixture(scope="module")
def finished(sweep) -> Sent:
    return of_wandb(sweep / "bytes-fixed-d2-fp32-learning-rate0.005")


@pytest.fixture(scope="module")
def failed(sweep) -> Sent:
    return of_wandb(sweep / "bytes-fixed-d2-fp32-learning-rate1e30")


def test_each_job_is_a_run_of_its_own_in_one_group(finished, failed):
    assert finished.name == "bytes-fixed-d2-fp32-learning-rate0.005"
    assert failed.name == "bytes-fixed-d2-fp32-learning-rate1e30"
    assert finished.group == failed.group == "s"
    assert finished.tags == failed.tags == ["bytes", "fixed", "fp32", "mine"]


def test_varied_keys_are_columns_of_numbers(finished, failed):
    assert [run.config["sweep/optimizer_learning_rate"] for run in (finished, failed)] == [0.005, 1e30]
    assert finished.config["attention"]["pattern"] == "fixed"


def test_runs_end_with_the_exit_code_of_their_job(sweep, finished, failed):
    assert (finished.exit_code, failed.exit_code) == (0, 2)
    content = json.loads((sweep / "sweep.json").read_text())
    assert [job["exit_code"] for job in content["jobs"]] == [0, 2]


def test_the_final_figures_are_columns(sweep, finished):
    figures = summary(sweep / finished.name)
    assert figures["test/bits_per_byte"] > 0
    assert {name: finished.summary[name] for name in figures} == figures


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_with_its_exit_code(tmp_path):
    process = begun(tmp_path, "seed=1", *LONG, *WANDB)
    wait_for(lambda: steps(tmp_path, "bytes-fixed-d2-fp32") > 2, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert of_wandb(tmp_path / "runs" / "sweeps" / "s" / "bytes-fixed-d2-fp32").exit_code == 143


def test_the_runs_of_a_sweep_lie_in_one_folder_for_wandb(sweep, finished, failed):
    links = sorted((sweep / "wandb").iterdir())
    assert {sent(link).name for link in links} == {finished.name, failed.name}
    gone = sweep / "wandb" / "offline-run-20260101_000000-gone"
    gone.symlink_to("../gone")
    assert gather(sweep) == sweep / "wandb"
    assert sorted((sweep / "wandb").iterdir()) == links


def panels_of(view: dict) -> list[dict]:
    return [panel for each in view["spec"]["section"]["panelBankConfig"]["sections"] for panel in each["panels"]]


def plotted(view: dict) -> set[str]:
    """Names that are drawn against an axis, and the axes."""
    charts = [panel["config"] for panel in panels_of(view) if panel["viewType"] == "Run History Line Plot"]
    return {name for chart in charts for name in (chart["xAxis"], *chart["metrics"])}


def test_the_dashboard_of_a_sweep_names_nothing_that_its_runs_do_not_log(sweep, finished, capsys):
    assert dashboard(["--sweep", str(sweep), "--print"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["projectName"], view["displayName"]) == ("sparse-transformer", "Sparse Transformer: s")
    section = view["spec"]["section"]
    assert len(plotted(view)) > 12
    assert plotted(view) - finished.history == {"train/peak_memory_gib", "train/loss_scale"}
    named = set(re.findall(NAME, json.dumps(panels_of(view))))
    assert named >= {"samples/text", "attention/learned", "attention/pattern"}
    assert named - finished.history - set(finished.summary) == NOT_HERE
    columns = list(section["runSets"][0]["runFeed"]["columnPinned"])
    assert columns[:3] == ["run:displayName", "run:state", "config:sweep/optimizer_learning_rate.value"]
    figures = {name.partition(":")[2] for name in columns if name.startswith("summary:")}
    assert figures - set(finished.summary) == {"train/peak_memory_gib"}
    assert json.dumps(section["runSets"][0]["filters"]).count('"s"') == 1


def test_a_sweep_of_one_key_has_a_line_for_each_of_its_values(sweep, finished):
    wanted = of_sweep(sweep)
    assert wanted.factors == ["optimizer.learning_rate"]
    assert wanted.by == "sweep/optimizer_learning_rate"
    assert wanted.by in finished.config


def test_charts_of_several_choices_name_nothing_that_runs_do_not_log(finished):
    keys = ["optimizer.learning_rate", "attention"]
    view = view_of(workspace(Wanted("p", group="s", varied=keys, factors=keys), "attention.pattern"))
    assert plotted(view) - finished.history == {"train/peak_memory_gib", "train/loss_scale"}
    assert set(re.findall(NAME, json.dumps(panels_of(view)))) - finished.history - set(finished.summary) == NOT_HERE


def test_what_these_runs_do_not_log_has_its_name_in_the_sources():
    text = "".join(file.read_text() for file in (SOURCES / "callbacks").glob("*.py"))
    assert [name for name in NOT_HERE if f'"{name}"' not in text] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("1e-4", 1e-4), ("fixed", "fixed"), ("inf", "inf"), ("nan", "nan"), ("true", "true")],
)
def test_values_of_columns_are_numbers_where_they_can_be(text, value):
    assert as_number(text) == value
    assert type(as_number(text)) is type(value)
