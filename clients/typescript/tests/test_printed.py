"""What the plan and the client's page print in TypeScript: its types hold, and it runs as it is printed."""

import json
import re
import subprocess

import pytest
from conformance.scenes.hooks import SECRET, signed
from typescript_programs import BLOCKS, PAGE, PLAN, SECONDS, running


def test_all_snippets_of_the_plan_are_here():
    expected = {"conversation", "dashboard", "hybrid", "notifications", "socket-only", "typescript"}
    assert set(PLAN) == expected


def test_the_client_prints_what_comes(workshop, local_broker):
    with running(workshop, "typescript", local_broker) as program:
        assert program.says("ready") == [["log", "WebSocket connected"]]
        local_broker.receive_mail(subject="Hello")
        assert program.says("log", "New message:", "Hello") == []
        local_broker.cut()
        [[_, said, reason]] = program.says("log", "WebSocket connected")
        assert (said, reason) == ("WebSocket disconnected:", "the connection was lost")


def test_the_conversational_agent_answers(workshop, local_broker):
    with running(workshop, "conversation", local_broker) as program:
        program.says("ready")
        local_broker.receive_mail(subject="Hello", from_="ada@example.com", body="How are you?")
        assert program.says("log", "Reply sent") == [["log", "New email from ada@example.com: Hello"]]
    [sent] = local_broker.commands
    assert sent.action == "send_email"
    assert sent.once
    said = {name: sent.params[name] for name in ("to", "subject", "body")}
    assert said == {"to": "ada@example.com", "subject": "Re: Hello", "body": "You said: How are you?"}


def test_the_dashboard_follows_four_inboxes_and_no_other(workshop, local_broker):
    with running(workshop, "dashboard", local_broker) as program:
        program.says("ready")
        for inbox_id in ("inbox_1", "inbox_5", "inbox_4"):
            local_broker.receive_mail(inbox_id, subject="Hello")
        bounce = {"message_id": "msg_1", "recipient": "eve@example.com", "reason": "unknown"}
        local_broker.publish({"type": "message.bounced", "inbox_id": "inbox_2", "payload": bounce})
        shown = program.says("showAlert", "Bounce: eve@example.com")
        assert shown == [["updateDashboard", "inbox_1", "Hello"], ["updateDashboard", "inbox_4", "Hello"]]


def test_urgent_mail_is_notified_and_other_mail_is_not(workshop, local_broker):
    with running(workshop, "notifications", local_broker) as program:
        program.says("ready")
        local_broker.receive_mail(subject="Hello", from_="ada@example.com")
        local_broker.receive_mail(subject="[URGENT] Help", from_="ada@example.com")
        expected = {"title": "Urgent Email", "body": "From: ada@example.com - [URGENT] Help"}
        assert program.says("sendPushNotification", expected) == []


def test_the_hybrid_processes_by_webhook_what_the_socket_has_not(workshop, local_broker):
    def webhook(event_id):
        message = {"message_id": "msg_1", "subject": f"By webhook: {event_id}"}
        event = {"type": "message.received", "event_id": event_id, "inbox_id": "inbox_a", "cursor": "c1"}
        body = json.dumps(event | {"created_at": "2026-11-23T10:00:00.123Z", "payload": {"message": message}})
        return {"headers": signed(SECRET, body=body), "body": body, "secret": SECRET}

    with running(workshop, "hybrid", local_broker, WEBHOOK="1") as program:
        assert program.says("ready") == [["post", "/webhook"]]
        message = {"message": {"message_id": "msg_1", "subject": "By socket"}}
        local_broker.publish(
            {"type": "message.received", "event_id": "evt_1", "inbox_id": "inbox_a", "payload": message}
        )
        assert program.says("processMessage", "By socket") == []
        program.tell(webhook("evt_1"))
        assert program.says("answered", 200, "OK") == []
        program.tell(webhook("evt_2"))
        assert program.says("answered", 200, "OK") == [["processMessage", "By webhook: evt_2"]]


def test_socket_only_processes_what_comes(workshop, local_broker):
    with running(workshop, "socket-only", local_broker) as program:
        program.says("ready")
        local_broker.receive_mail(subject="Hello")
        assert program.says("processMessage", "Hello") == []


# --- the page


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_the_page_runs(workshop, local_broker, name):
    local_broker.receive_mail(subject="Your code is 493201")
    with running(workshop, name, local_broker) as program:
        before = program.says("ready")
    if "waitFor" in BLOCKS[name].text:
        assert before == [["log", "Your code is 493201", ["493201"], []]]


def test_the_page_begins_with_the_plans_snippet():
    assert next(iter(BLOCKS.values())).text == PLAN["typescript"].read_text()


def test_every_option_has_its_row():
    table = PAGE.read_text().partition("## Options")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    sources = ["options.ts", "node.ts"]
    declared = "".join((PAGE.parent / "src" / name).read_text() for name in sources)
    options = re.findall(r"interface (?:Daimon|Node)Options[^{]*\{(.*?)\n\}", declared, re.DOTALL)
    assert sorted(rows) == sorted(re.findall(r"^  (\w+)\?:", "\n".join(options), re.MULTILINE))


def test_every_class_and_function_is_documented(built):
    program = "console.log(JSON.stringify(Object.keys(await import('daimon-email'))))"
    command = ["node", "--input-type=module", "-e", program]
    names = json.loads(subprocess.check_output(command, cwd=built, timeout=SECONDS))
    assert len(names) > 10
    assert [name for name in names if not re.search(rf"\b{name}\b", PAGE.read_text())] == []


def test_the_lock_of_its_packages_names_no_registry():
    lock = (PAGE.parent / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "registry" not in lock


def test_what_is_published_is_the_modules_with_their_types_and_nothing_else(built):
    command = ["npm", "pack", "--dry-run", "--json", "--ignore-scripts"]
    said = json.loads(subprocess.check_output(command, cwd=built, timeout=SECONDS, stderr=subprocess.DEVNULL))
    [packed] = said if isinstance(said, list) else said.values()
    sources = {path.stem for path in (built / "src").glob("*.ts")}
    modules = {f"dist/{name}{end}" for name in sources for end in (".js", ".d.ts")}
    assert {file["path"] for file in packed["files"]} == {"README.md", "package.json"} | modules
