"""Opens the interactive documentation in headless Chromium, tries an operation out with its example, and prints the
response.

Usage: try_it_out.py URL SCREENSHOT OPERATION. Speaks WebDriver (w3.org/TR/webdriver2) to chromedriver with the standard library.
"""
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,2000",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Driver:
    def __init__(self, process, profile):
        # The first line names the port that was asked for, which is 0.
        port = next(found[1] for line in process.stdout if (found := re.search(r"on port ([1-9]\d*)", line)))
        self.base = f"http://127.0.0.1:{port}"
        options = {"args": FLAGS + [f"--user-data-dir={profile}"]}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        self.session = self.call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]

    def command(self, method, path, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def find(self, css):
        """The element, as soon as it is there."""
        deadline = time.monotonic() + 60
        while True:
            found = self.command("POST", "/elements", {"using": "css selector", "value": css})
            if found:
                return found[0][ELEMENT]
            if time.monotonic() > deadline:
                raise SystemExit(f"no {css} in the page")
            time.sleep(0.1)

    def click(self, css):
        self.command("POST", f"/element/{self.find(css)}/click", {})

    def text(self, css):
        return self.command("GET", f"/element/{self.find(css)}/text")


@contextlib.contextmanager
def browser():
    """A driver with a browser and a profile of its own; all of it is gone afterwards, whatever happens."""
    path = shutil.which("chromedriver") or sys.exit("chromedriver is not here; scripts/test installs it")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([path, "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            driver = Driver(process, profile)
            yield driver
            driver.command("DELETE", "")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(url, screenshot, name):
    with browser() as driver:
        driver.command("POST", "/url", {"url": url})
        operation = f"[id^='operations-'][id$='-{name}']"
        driver.click(f"{operation} .opblock-summary-control")
        driver.click(f"{operation} .try-out__btn")
        driver.click(f"{operation} .execute")
        print(driver.text(f"{operation} .live-responses-table .response-col_status"))
        print(driver.text(f"{operation} .live-responses-table .highlight-code"))
        with open(screenshot, "wb") as file:
            file.write(base64.b64decode(driver.command("GET", "/screenshot")))


main(*sys.argv[1:])
