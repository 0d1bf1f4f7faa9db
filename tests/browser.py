"""A real headless browser, spoken to in its DevTools protocol over a pair of pipes; needs chromium and nothing else.

python -m tests.browser PAGE.html OUT.png --width 390 [--height 2000] [--dark]      a screenshot, as for docs/pictures
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ENOUGH = 60.0  # seconds for an answer
# The browser reads the file descriptor 3 and writes 4; ours may have these numbers too, so they are moved away first
AS_3_AND_4 = """
import os, sys
reads, writes = (os.dup(os.dup(os.dup(int(fd)))) for fd in sys.argv[1:3])
os.dup2(reads, 3), os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass
class Visit:
    """What a browser saw of a page.

    Args:
        wide: width of the content in pixels; more than the window's where it overflows.
        high: its height.
        said: errors and warnings of the console, and exceptions.
        asked: addresses that were asked for, but for the page itself and what is in it.
        failed: reasons of requests that failed.
        shown: names of the sections of text that can be seen.
        picture: PNG of the page.
    """

    wide: int = 0
    high: int = 0
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    picture: bytes = b""


class Browser:
    """One browser with one page.

    Args:
        to_browser: file descriptor that it reads.
        from_browser: file descriptor that it writes.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        self._number = 0
        self._rest = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, event: str) -> None:
        """Wait until something has happened."""
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + ENOUGH
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.from_browser], [], [], left)[0], "the browser does not answer"
            chunk = os.read(self.from_browser, 1 << 20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """Start a browser for the time of the context."""
    assert CHROMIUM is not None
    (reads, to_browser), (from_browser, writes) = os.pipe(), os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-pipe"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(reads), str(writes), *line],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        try:
            browser = Browser(to_browser, from_browser)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            yield browser
        finally:
            process.kill()
            process.wait()
            os.close(to_browser)
            os.close(from_browser)


def visit(file: Path, width: int, height: int | None = None, dark: bool = False, top: int = 0) -> Visit:
    """Open a file in a window of some width and say what was seen; the picture begins at ``top``."""
    with opened() as browser:
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        mobile = width < 600
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.call("Emulation.setEmulatedMedia", features=[scheme])
        address = file.resolve().as_uri()
        browser.call("Page.navigate", url=address)
        browser.wait_for("Page.loadEventFired")

        def value(script: str) -> Any:
            return browser.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

        seen = Visit(value("document.documentElement.scrollWidth"), value("document.documentElement.scrollHeight"))
        seen.shown = value("[...document.querySelectorAll('h2')].filter(e => e.offsetHeight).map(e => e.textContent)")
        clip = {"x": 0, "y": top, "width": width, "height": height or seen.high - top, "scale": 1}
        picture = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        seen.picture = base64.b64decode(picture["data"])
        for event in browser.events:
            note(seen, event["method"], event["params"], address)
        return seen


def note(seen: Visit, method: str, params: dict[str, Any], address: str) -> None:
    """Keep what an event tells."""
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        seen.said.append(str(params["args"]))
    elif method == "Runtime.exceptionThrown":
        seen.said.append(str(params["exceptionDetails"]))
    elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        seen.said.append(params["entry"]["text"])
    elif method == "Network.requestWillBeSent":
        url = params["request"]["url"]
        if url != address and not url.startswith("data:"):
            seen.asked.append(url)
    elif method == "Network.loadingFailed":
        seen.failed.append(params["errorText"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, help="default: the whole page")
    parser.add_argument("--top", type=int, default=0, help="where the picture begins")
    parser.add_argument("--dark", action="store_true")
    wanted = parser.parse_args()
    seen = visit(wanted.page, wanted.width, wanted.height, wanted.dark, wanted.top)
    wanted.out.write_bytes(seen.picture)
    print(f"{wanted.out}: {seen.wide} x {seen.high}, console {seen.said}, asked {seen.asked}, failed {seen.failed}")


if __name__ == "__main__":
    main()
