"""A real browser that tests look at pages with."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any


class Browser:
    """Chromium without a window, told what to do through two pipes by its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        (ours, theirs), (reads, writes) = os.pipe()[::-1], os.pipe()
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        # it reads from 3 and writes to 4, whatever these are here
        shell = f'exec "$@" 3<&{theirs} 4>&{writes}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(theirs, writes), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(writes)
        self.to, self.answers, self.unread = os.fdopen(ours, "wb", buffering=0), reads, b""
        self.number, self.session, self.requests = 0, {}, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self("Network.enable")
        self("Page.enable")

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            assert select.select([self.answers], [], [], 60)[0], "chromium does not answer"
            more = os.read(self.answers, 1 << 16)
            assert more, "chromium has ended"
            self.unread += more
        text, self.unread = self.unread.split(b"\0", 1)
        message = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        self.to.write(json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=url)
        while self.js("location.href !== 'about:blank' && document.readyState") != "complete":
            pass

    def js(self, expression: str) -> Any:
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of what is there."""
        where = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "inline: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for event in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=event, x=where[0], y=where[1], button="left", clickCount=1)

    def press(self, selector: str, key: str, code: int) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        text = {"text": "\r"} if key == "Enter" else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def column(self, table: str, number: int) -> list[str]:
        """Texts of a column's visible cells."""
        found = self.js(
            f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => r.offsetParent)"
            f".map(r => r.cells[{number}].textContent)"
        )
        return [text.replace("\N{NO-BREAK SPACE}", " ") for text in found]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.to.close()
        os.close(self.answers)
