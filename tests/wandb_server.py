"""A wandb server of our own on the loopback address: as much of its GraphQL as a sweep's agent and runs take."""

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789012345678901234567890123456789"
ENTITY = "mine"


class Speaking(BaseHTTPRequestHandler):
    """Reads JSON and answers with JSON, and says nothing on the terminal."""

    protocol_version = "HTTP/1.1"

    def heard(self) -> dict[str, Any]:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        try:
            return json.loads(content)
        except ValueError:  # an upload
            return {}

    def say(self, content: dict[str, Any], status: int = 200) -> None:
        out = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_: Any) -> None:
        pass


class Sweeping(ThreadingHTTPServer):
    """Gives the runs of one sweep to the agents that ask, and keeps what they and the runs say.

    Args:
        jobs: the values of each run, by key.
    """

    def __init__(self, *jobs: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.left = [(f"agent{number}", values) for number, values in enumerate(jobs)]
        self.sweep = ""
        """The sweep's file, as ``wandb sweep`` has sent it."""
        self.project = ""
        self.given: list[str] = []
        self.runs: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
        """By project and id: what each run last said of itself."""
        self.exit_codes: dict[str, list[int]] = defaultdict(list)
        """By id: of each end of the run."""
        self.stop_at: dict[str, int] = {}
        """The point of a run's curves from which on the server wants it to stop."""
        self.stopping: set[str] = set()
        self.asked: list[str] = []
        """Queries that this server does not know."""

    def handle_error(self, *_: Any) -> None:
        """Say nothing of those that went before they had their answer."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commands(self, running: list[str]) -> list[dict[str, Any]]:
        """What an agent is to do next."""
        if stop := [run for run in running if run in self.stopping]:
            return [{"type": "stop", "run_id": run} for run in stop]
        if running:
            return []
        if not self.left:
            return [{"type": "exit"}]
        run, values = self.left.pop(0)
        self.given.append(run)
        args = {key: {"value": value} for key, value in values.items()}
        return [{"type": "run", "run_id": run, "program": "src/train.py", "args": args}]

    def stream(self, run: str, sent: dict[str, Any]) -> dict[str, Any]:
        """What a run says of its figures and its end."""
        if sent.get("complete"):
            self.exit_codes[run].append(sent["exitcode"])
        for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            if json.loads(line)["_step"] >= self.stop_at.get(run, 1_000_000):
                self.stopping.add(run)
        return {"exitcode": None, "limits": {}, "stopped": run in self.stopping}


# What the GraphQL of the queries has in it, of those that are answered; the methods of Answer have these names.
ANSWERS = ("upsertSweep", "createAgent", "agentHeartbeat", "upsertBucket", "sweep(", "viewer", "serverInfo",
           "createRunFiles", "model(")  # fmt: skip


class Answer(Speaking):
    server: Sweeping

    def do_GET(self) -> None:
        self.say({})

    def do_PUT(self) -> None:
        self.heard()
        self.say({})

    def do_POST(self) -> None:
        sent = self.heard()
        if self.path.startswith("/files/"):
            self.say(self.server.stream(self.path.split("/")[4], sent))
            return
        query, given = sent.get("query", ""), sent.get("variables", {})
        for name in ANSWERS:
            if name in query:
                self.say({"data": getattr(self, name.strip("("))(given)})
                return
        if query:
            self.server.asked.append(query)
        self.say({"data": {}})

    def upsertSweep(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.server.sweep, self.server.project = given["config"], given["projectName"]
        project = {"id": "p", "name": given["projectName"], "entity": {"id": "e", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": []}}

    def sweep(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"sweep": {"id": "s", "name": "sweep1", "config": self.server.sweep, "runs": {"edges": []}}}}

    def createAgent(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createAgent": {"agent": {"id": "agent-id"}}}

    def agentHeartbeat(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        commands = self.server.commands(list(json.loads(given["runState"])))
        return {"agentHeartbeat": {"agent": {"id": "agent-id"}, "commands": json.dumps(commands)}}

    def upsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run, project = given["name"], given["project"]
        self.server.runs[project, run].update({key: value for key, value in given.items() if value is not None})
        bucket = {"id": "b", "name": run, "displayName": given.get("displayName"), "config": "{}",
                  "sweepName": given.get("sweep"), "historyLineCount": 0,
                  "project": {"id": "p", "name": project, "entity": {"id": "e", "name": ENTITY}}}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "1", "username": "me", "entity": ENTITY, "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def serverInfo(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": [], "cliVersionInfo": {}}}

    def model(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"model": {"entity": {"id": "e", "name": ENTITY}, "bucket": None}}

    def createRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.server.address}/upload"} for name in given["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let a server answer in a thread of its own."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
