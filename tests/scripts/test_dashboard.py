"""The wandb dashboard against a server of our own that speaks as much GraphQL as saving a view takes."""

import json
import subprocess
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from src.loggers.wandb_login import login_known
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
