"""The wandb dashboard against a server of our own that speaks as much GraphQL as saving a view takes."""

import json
import subprocess
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.dashboard import Wanted, of_sweep, sent, workspace
from src.loggers.wandb_login import login_known
from src.runs.run import Run
from tests.tiny_runs import command
from tests.wandb_server import KEY, Speaking, serving

SECTIONS = ["Bits per byte", "Loss", "Speed", "Memory", "Samples", "Attention", "Runs"]


class Server(ThreadingHTTPServer):
    """Keeps the views that it is sent."""

    views: list[dict[str, Any]]
    refuses = False


class Answer(Speaking):
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        self.say({})

    def do_POST(self) -> None:  # noqa: N802
        request = self.heard()
        query, variables = request.get("query", ""), request.get("variables", {})
        if "upsertView" in query:
            self.server.views.append(variables)
            errors = [{"message": "no rights"}] if self.server.refuses else None
            view = {"id": variables.get("id", "id-1"), "name": variables["name"]}
            self.say(
                {"data": {"upsertView": {"view": view, "inserted": True}}, **({"errors": errors} if errors else {})}
            )
        elif "allViews" in query:
            node = {"id": "id-1", "displayName": "old", "spec": self.server.views[-1]["spec"]}
            self.say({"data": {"project": {"allViews": {"edges": [{"node": node}]}}}})
        else:
            viewer = {"id": "1", "username": "me", "entity": "mine", "email": "", "flags": "{}", "teams": {"edges": []}}
            self.say({"data": {"viewer": viewer}})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Answer)
    made.views = []
    with serving(made):
        yield made


def dashboard(*arguments: str, folder: Path, server: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does who is logged in, if there is a server, and else is not."""
    login = {"WANDB_BASE_URL": server, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"} if server else {}
    home = {"HOME": str(folder), "NETRC": str(folder / "netrc")}
    return command("scripts.dashboard", *arguments, folder=folder, **home, **login, **env)


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_new_view_and_bringing_it_up_to_date(tmp_path, server):
    done = dashboard("--project", "p", "--group", "g", folder=tmp_path, server=address(server))
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    url = f"{address(server)}/mine/p?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"
    assert done.stdout == f"{url}\n"
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("mine", "p", "Sparse Transformer: g")
    section = json.loads(view["spec"])["section"]
    assert [each["name"] for each in section["panelBankConfig"]["sections"]] == SECTIONS
    again = dashboard(
        "--project", "p", "--by", "precision.name", "--update", url, folder=tmp_path, server=address(server)
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    newer = server.views[1]
    assert (newer["id"], newer["name"]) == ("id-1", view["name"])
    assert "precision.value.name" in newer["spec"]
    assert "precision.value.name" not in view["spec"].replace("config:precision.value.name", "")


def test_a_server_that_refuses_is_one_sentence(tmp_path, server):
    server.refuses = True
    done = dashboard("--project", "p", folder=tmp_path, server=address(server))
    assert done.returncode == 2
    assert one_error(done).startswith("error: 127.0.0.1 did not take the dashboard (")
    assert "no rights" in done.stderr


def test_a_server_that_is_not_there_is_one_sentence(tmp_path):
    done = dashboard("--project", "p", folder=tmp_path, server="http://127.0.0.1:9")
    assert done.returncode == 2
    assert one_error(done).startswith("error: the wandb server 127.0.0.1 does not answer (ConnectionError)")


def test_without_a_login_it_says_how_and_what_works_without(tmp_path):
    done = dashboard(folder=tmp_path)
    assert done.returncode == 2
    said = one_error(done)
    assert all(words in said for words in ("wandb login", "WANDB_API_KEY", "--print", "wandb leet"))


def test_what_is_no_sweep_is_one_sentence(tmp_path):
    done = dashboard("--sweep", str(tmp_path), folder=tmp_path)
    assert done.returncode == 2
    assert one_error(done) == f"error: --sweep must be a sweep's folder with its sweep.json, found {tmp_path}"


def test_printing_takes_neither_login_nor_network(tmp_path):
    done = dashboard("--print", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    columns = list(view["spec"]["section"]["runSets"][0]["runFeed"]["columnPinned"])
    assert view["projectName"] == "sparse-transformer"
    assert columns[:4] == ["run:displayName", "run:state", "config:data.value.name", "config:attention.value.pattern"]


LOGGED = SimpleNamespace(logger=SimpleNamespace(project="p", entity=None, group="g"))
FOUR = ["attention", "model.depth", "precision", "recipe"]


def sections(wanted: Wanted) -> dict[str, list[dict[str, Any]]]:
    """The configuration of each panel by section."""
    found = sent(workspace(wanted, wanted.by))["spec"]["section"]["panelBankConfig"]["sections"]
    return {each["name"]: [panel["config"] for panel in each["panels"]] for each in found}


def test_several_varied_keys_have_a_row_of_charts_each():
    found = sections(Wanted("p", group="g", varied=FOUR, factors=FOUR))
    assert list(found) == ["Choices", *SECTIONS]
    together, rows = found["Choices"][:3], found["Choices"][3:]
    columns = ["sweep/attention", "sweep/model_depth", "sweep/precision", "sweep/recipe"]
    ends = ["summary:train/step_ms", "summary:val/bits_per_byte"]
    assert [each["accessor"] for each in together[0]["columns"]] == [f"config:{key}.value" for key in columns] + ends
    assert [chart["groupBy"] for chart in rows] == [f"{key}.value" for key in columns for _ in range(3)]
    axes = [chart.get("xAxis") for chart in rows]
    assert axes == ["train/bytes_seen", "train/seconds", None] * 4
    assert rows[3]["chartTitle"] == "validation against bytes seen, by model depth"


def test_no_chart_is_there_twice():
    for factors in ([], ["model.depth"], FOUR):
        found = sections(Wanted("p", factors=factors)).values()
        charts = [title for some in found for chart in some if (title := chart.get("chartTitle"))]
        assert len(charts) == len(set(charts))


@pytest.mark.parametrize(
    ("factors", "by"),
    [
        ([], "attention.pattern"),
        (["model.depth"], "sweep/model_depth"),
        (["model.depth", "attention"], "attention.pattern"),
    ],
)
def test_charts_have_a_line_for_each_kind_of_attention_where_it_varies(factors, by):
    assert Wanted("p", factors=factors).by == by


def test_keys_with_many_values_and_seeds_have_columns_but_no_charts(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "config", lambda run: LOGGED)
    jobs = [{"run": "r", "overrides": {"seed": str(i % 2), "model.depth": str(i % 3), "model.dropout": str(i / 10)}}
            for i in range(9)]  # fmt: skip
    varied = ["seed", "model.depth", "model.dropout"]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("{}")
    (tmp_path / "sweep.json").write_text(json.dumps({"varied": varied, "jobs": jobs}))
    found = of_sweep(tmp_path)
    assert (found.varied, found.factors) == (varied, ["model.depth"])


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The only line that is ours; wandb says some of its own."""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("wandb:")]
    assert not done.stdout
    return line


@pytest.mark.parametrize("host", ["api.forge.coreweave.com", "api.wandb.ai"])
def test_a_login_of_either_name_of_the_public_server_counts(tmp_path, monkeypatch, host):
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert login_known()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.my.company")
    assert not login_known()
