"""A headless Chromium, spoken to by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_STARTS_WITHIN_S = 60
_ANSWERS_WITHIN_S = 60


def executable() -> str | None:
    """A browser of the system, or one that playwright has brought; None if there is none."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    kept = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright")
    shipped = sorted(Path(kept).glob("chromium*/chrome-*/*"))
    return next((str(each) for each in shipped if each.name in ("chrome", "headless_shell")), None)


class Page:
    """One tab: what it said to the console, what it asked the network for, and what is in it."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events meanwhile are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["exceptionDetails"])[:800])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.errors.append(json.dumps(event["args"])[:800])
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(event["entry"])[:800])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a file at a size, in the system's light or dark scheme, until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.errors.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def first_paint_ms(self, path: Path, loads: int = 8) -> float:
        """Milliseconds to the first text, the least of some loads: others may use the machine."""
        paint = "performance.getEntriesByName('first-contentful-paint')"
        found = []
        for _ in range(loads):
            self.open(path)
            self.wait(f"{paint}.length > 0")
            found.append(float(self.run(f"{paint}[0].startTime")))
            if found[-1] < 500:
                break
        return min(found)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; AssertionError with what it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, within_s: float = _ANSWERS_WITHIN_S) -> None:
        """Until a condition in the page holds."""
        end = time.monotonic() + within_s
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition} does not become true; {self.errors}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that fits."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const at = () => { const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; };"
            "return new Promise((done) => { let last = ''; const look = () => {"
            "const now = at(); if (String(now) === last) done(now);"
            "else { last = String(now); setTimeout(look, 60); } }; look(); }); })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1],
                      button="left", clickCount=1)  # fmt: skip

    def write(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One key, such as ArrowDown, Enter, Tab."""
        code = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39,
                "ArrowLeft": 37, "Escape": 27}.get(key, 0)  # fmt: skip
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code, **more)  # fmt: skip

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What is seen, or all of the page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.contextmanager
def browser(command: str) -> Iterator[Callable[[], Page]]:
    """A running browser; what it gives opens a tab. Ends the browser afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [command, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-extensions", "--disable-background-networking",
             "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*",
             f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        connections = []
        try:
            port = _port(Path(profile, "DevToolsActivePort"), process)

            def tab() -> Page:
                with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                    pages = [each for each in json.load(answer) if each["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                connection = websocket.create_connection(address, timeout=_ANSWERS_WITHIN_S)
                connections.append(connection)
                return Page(connection)

            yield tab
        finally:
            for connection in connections:
                connection.close()
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise RuntimeError("the browser did not start")
