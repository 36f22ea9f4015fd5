"""Debian's Chromium, driven over a pipe by its own protocol: no package between the test and the browser.

``--remote-debugging-pipe`` makes descriptors 3 and 4 carry JSON messages that end with a zero byte. What a page asks
for, what its policy forbids and what its console says are events there, so a test can say that there was none.
"""

from __future__ import annotations

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["Browser", "chromium"]

WAIT = 20.0
_START = (
    "import fcntl, os, sys\n"
    "high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 20) for fd in sys.argv[1:3]]\n"
    "os.dup2(high[0], 3); os.dup2(high[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""Puts the two descriptors where the browser looks for them."""


def chromium() -> str | None:
    """Return where Chromium is; None where it is not."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page in one browser; a context manager.

    Args:
        within: words before its command line, which run it elsewhere.

    Attributes:
        requests: addresses that the page asked for.
        complaints: what its console said, its policy forbade, and its scripts threw.
    """

    def __init__(self, within: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        words = [
            str(chromium()), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--hide-scrollbars", "--force-color-profile=srgb", "--mute-audio",
            f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip

        self._process = subprocess.Popen(
            [*within, sys.executable, "-c", _START, str(from_us), str(to_us), *words],
            pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "HOME": self._folder.name},
        )  # fmt: skip
        os.close(from_us)
        os.close(to_us)
        self._data = b""
        self._number = 0
        self._session = ""
        self._answers: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Self:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = ""
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    # ── the protocol ─────────────────────────────────────────────────────────────────────────────────────

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method, and return what it gives."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT
        while self._number not in self._answers:
            assert time.monotonic() < end, f"no answer to {method}"
            self._read(0.1)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self, seconds: float) -> None:
        if not select.select([self._in], [], [], seconds)[0]:
            return
        self._data += os.read(self._in, 1 << 20)
        *messages, self._data = self._data.split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._event(message["method"], message["params"])

    def _event(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:1500])
        elif method == "Log.entryAdded" and told["entry"]["source"] != "network":
            self.complaints.append(f"{told['entry']['source']}: {told['entry']['text']}")
        elif method == "Audits.issueAdded" and told["issue"]["code"] == "ContentSecurityPolicyIssue":
            self.complaints.append(json.dumps(told["issue"])[:1500])

    # ── what a person does ───────────────────────────────────────────────────────────────────────────────

    def size(self, width: int, height: int, *, dark: bool = False, motion: bool = True) -> None:
        """Be a screen of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, address: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """Return the value of an expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = WAIT) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while True:
            try:
                value = self.js(f"Boolean({expression})")
            except AssertionError:  # the page is being replaced
                value = None
            if value:
                return value
            assert time.monotonic() < end, (expression, self.js("document.body.innerText"), self.complaints)
            self._read(0.05)

    def key(self, name: str, *, shift: bool = False) -> None:
        """Press a key."""
        text = name if len(name) == 1 else "\r" if name == "Enter" else ""
        numbers = {
            "Enter": 13,
            "Escape": 27,
            "Tab": 9,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "ArrowLeft": 37,
            "End": 35,
        }
        common = {
            "key": name,
            "windowsVirtualKeyCode": numbers.get(name, ord(name.upper()) if len(name) == 1 else 0),
            "modifiers": 8 if shift else 0,
        }
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Type a text."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
