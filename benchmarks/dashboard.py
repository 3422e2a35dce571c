"""The page of an account under load, in a real browser: `python -m benchmarks.dashboard` (`make bench-dashboard`).

Publishes at a steady rate to a broker of its own, while the page is open, and says how long the page's tasks took, what
share of a core the page took, how old events were when they came, and how its heap grows once it keeps all that it ever
will. Exits with 1 where a bar does not hold: no task over 50 ms of processor time (by the clock it is longer where the
machine has other things to do), nothing missed, a heap that stays. It needs the dependency group `browser`, and
Debian's `chromium-headless-shell`.
"""

import argparse
import http.client
import json
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.keys import hash_key

CHROMIUM = "/usr/lib/chromium/chromium-headless-shell"
KEPT = 21_000
"""Events after which the page drops old ones: its KEPT.rows, and what it lets come before it does."""
LONG_MS = 50
MOST_GROWTH = 0.10
"""Of the heap, between the first look after the cap and the last."""
LISTS_PER_SECOND = 20
TRACE_SECONDS = 5
WATCH = """
globalThis.longTasks = [];
new PerformanceObserver((list) => {
  for (const { startTime, duration } of list.getEntries()) longTasks.push([startTime, duration]);
}).observe({ type: "longtask", buffered: true });
"""


@contextmanager
def broker_at_work(key: str) -> Iterator[str]:
    """Run a broker with one account; yield its address, `host:port`."""
    config = f'[[accounts]]\nid = "acct_bench"\n[[accounts.keys]]\nid = "key"\nsha256 = "{hash_key(key)}"\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broker.toml"
        path.write_text(config)
        command = [sys.executable, "-m", "broker", "serve", "--config", str(path), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                found = None
                while not found:
                    found = re.search(r"listening on http://(\S+)", process.stderr.readline())
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found[1]
            finally:
                process.terminate()


def publish(address: str, key: str, rate: int, until: threading.Event) -> None:
    """Publish so many mails a second, in lists, until told to stop."""
    connection = http.client.HTTPConnection(address)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    number, due = 0, time.monotonic()
    while not until.is_set():
        events = []
        for _ in range(rate // LISTS_PER_SECOND):
            number += 1
            message = {"message_id": f"msg_{number}", "from": "Ada <ada@example.com>", "subject": f"Question {number}"}
            message["body"] = "Can your agent help me with this? " * 6
            inbox = f"inbox_{number % 40}"
            events.append({"type": "message.received", "inbox_id": inbox, "payload": {"message": message}})
        connection.request("POST", "/v1/events", json.dumps(events), headers)
        connection.getresponse().read()
        due = max(due + 1 / LISTS_PER_SECOND, time.monotonic() - 1)
        until.wait(max(0.0, due - time.monotonic()))


def longest_task(trace: bytes) -> float:
    """Return the processor time, in milliseconds, of the longest task of the page's main thread in a trace."""
    events = json.loads(trace)["traceEvents"]
    named = (each for each in events if each.get("name") == "thread_name")
    main = {(each["pid"], each["tid"]) for each in named if each["args"].get("name") == "CrRendererMain"}
    tasks = (each for each in events if each.get("name", "").endswith("::RunTask"))
    times = (each["tdur"] for each in tasks if (each["pid"], each["tid"]) in main and "tdur" in each)
    return max(times) / 1_000


def number_in(text: str) -> int:
    """Return a number of the page, which has narrow spaces between its thousands."""
    return int(re.sub(r"\D", "", text) or 0)


def main() -> int:
    """Run it, print what was seen, and return the exit code."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="events a second")
    parser.add_argument("--seconds", type=int, default=60, help="how long to look on, once the page keeps no more")
    options = parser.parse_args()
    key, stop = f"dm_live_{secrets.token_urlsafe(24)}", threading.Event()
    with broker_at_work(key) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(WATCH)
        page.goto(f"http://{address}/dashboard")
        page.get_by_label("Account key").fill(key)
        page.get_by_role("button", name="Connect").click()
        page.locator("#state[data-state=live]").wait_for()
        publisher = threading.Thread(target=publish, args=(address, key, options.rate, stop))
        publisher.start()
        inside = page.context.new_cdp_session(page)
        inside.send("Performance.enable")

        def seen() -> int:
            return number_in(page.locator("#n-seen").inner_text())

        def busy() -> float:
            metrics = inside.send("Performance.getMetrics")["metrics"]
            return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")

        def heap() -> int:
            """Collect, which is a long task of ours, and return what is left."""
            inside.send("HeapProfiler.collectGarbage")
            usage = inside.send("Runtime.getHeapUsage")
            return int(usage["usedSize"] + usage.get("embedderHeapUsedSize", 0) + usage.get("backingStorageSize", 0))

        while seen() < KEPT + options.rate:
            time.sleep(0.5)
        first = heap()
        began, seen_before, busy_before, clock = time.monotonic(), seen(), busy(), page.evaluate("performance.now()")
        time.sleep(options.seconds)
        took, came, cost = time.monotonic() - began, seen() - seen_before, busy() - busy_before
        long = [ms for start, ms in page.evaluate("longTasks") if start >= clock]
        browser.start_tracing(page=page, categories=["toplevel", "__metadata"])
        time.sleep(TRACE_SECONDS)
        longest = longest_task(browser.stop_tracing())
        ages = page.locator("#n-p50").inner_text(), page.locator("#n-p99").inner_text()
        elements, missed = page.locator("*").count(), page.locator("#missed").is_visible()
        last = heap()
        stop.set()
        publisher.join()
        browser.close()
    growth = last / first - 1
    by_the_clock = f"{len(long)} over {LONG_MS} ms{f', the longest {max(long):.0f} ms' if long else ''}"
    print(f"events shown     {came / took:,.0f}/s of {options.rate:,} published, {'some' if missed else 'none'} missed")
    print(f"age p50, p99     {ages[0]}, {ages[1]}")
    print(f"the page's core  {cost / took:.0%}, {elements} elements")
    print(f"longest task     {longest:.0f} ms of processor time; by the clock {by_the_clock}")
    print(f"heap             {first / 1e6:.1f} MB, after {took:.0f} s {last / 1e6:.1f} MB ({growth:+.1%})")
    return int(longest > LONG_MS or missed or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
