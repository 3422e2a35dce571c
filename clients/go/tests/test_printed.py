"""What the plan and the client's page print in Go: it compiles, and runs as it is printed."""

import re
from pathlib import Path

import pytest
import trio
from documents import blocks

FOLDER = Path(__file__).parents[1]
PAGE = FOLDER / "README.md"
BLOCKS = blocks("go", "client", page=PAGE)

PLAN = """
package main

import (
    "github.com/daimon-email/go-sdk/websocket"
)

func main() {
    client := websocket.New(websocket.Config{
        APIKey:         inboxAPIKey,
        AutoReconnect:  true,
        ReconnectDelay: 5 * time.Second,
    })

    client.OnMessageReceived(func(msg *websocket.Message) {
        fmt.Printf("New message: %s\\n", msg.Subject)
    })

    client.OnConnected(func() {
        fmt.Println("WebSocket connected")
    })

    client.OnDisconnected(func(reason string) {
        fmt.Printf("WebSocket disconnected: %s\\n", reason)
    })

    client.Connect()
}
"""
"""The plan's snippet, to the letter."""

LEFT_OUT = """
package main

import (
	stdfmt "fmt"
	"os"
	stdtime "time"
)

type printer struct{}

func (printer) Printf(format string, said ...any) { stdfmt.Printf(format, said...) }
func (printer) Println(said ...any)               { stdfmt.Println(said...) }

var (
	fmt         printer
	time        = struct{ Second stdtime.Duration }{stdtime.Second}
	inboxAPIKey = os.Getenv("DAIMON_API_KEY")
)
"""
"""What the plan's snippet uses and does not say: in a file beside it, so that not a letter of it is changed."""

PACKAGES = {
    name.rpartition("/")[2]: name
    for name in (
        "context", "errors", "fmt", "io", "log", "net/http", "os", "os/signal", "syscall", "time",
        "github.com/daimon-email/go-sdk/websocket",
    )
}  # fmt: skip


def program_of(text):
    """A block that is no program is what stands in the main of one."""
    if text.startswith("package main"):
        return text
    used = "".join(f'\t"{path}"\n' for name, path in PACKAGES.items() if re.search(rf"\b{name}\.", text))
    ctx = "" if text.startswith("ctx,") else "\tctx, stop := interrupted()\n\tdefer stop()\n\t_ = ctx\n"
    return f"package main\n\nimport (\n{used})\n\nfunc main() {{\n{ctx}{text}}}\n"


def test_the_plans_snippet_runs_to_the_letter(program, running, local_broker):
    with running(program(PLAN, LEFT_OUT), local_broker.url, local_broker.key) as process:
        assert process.stdout.readline() == "WebSocket connected\n"
        local_broker.receive_mail(subject="Hello")
        assert process.stdout.readline() == "New message: Hello\n"
        local_broker.cut()
        assert process.stdout.readline() == "WebSocket disconnected: the connection was lost\n"
        assert process.stdout.readline() == "WebSocket connected\n"


SAID = {
    "OnDisconnected": ["WebSocket connected", "New message: Hello"],
    "go func() {": ["sent_1"],
    "Thank you, we have it.": ["answered evt_2"],
    "archive": ["refused: unknown_action"],
    "FileStore": [],
    "AckManual": ["kept msg_2"],
    "WaitFor": ["Your code is 493201 [493201] []"],
    "Queue": None,
    "Verify": None,
}
"""What a program with this in it says; None: it is run elsewhere, or only compiled."""


async def somebody_listens(broker):
    while not broker.statistics().hub.live:  # noqa: ASYNC110
        await trio.sleep(0.01)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_what_the_page_shows_runs_as_it_is_printed(program, running, block, local_broker):
    [expected] = [said for name, said in SAID.items() if name in block.text]
    built = program(program_of(block.text))
    if expected is None:
        return
    local_broker.receive_mail(subject="Your code is 493201")
    with running(built, local_broker.url, local_broker.key) as process:
        if "OnMessageReceived" in block.text or '"message.received"' in block.text:
            local_broker.call(somebody_listens, local_broker.broker)
            local_broker.receive_mail(subject="Hello")
        assert [process.stdout.readline().rstrip() for _ in expected] == expected
