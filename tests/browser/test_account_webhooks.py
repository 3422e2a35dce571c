"""The webhooks of an account on its page: endpoints, what became of events, tests, sending again."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from dashboards import broker_with, expect, log_in, mail, row

ALLOWED = '[webhooks]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]\n'


@pytest.fixture
def receiver():
    """An endpoint that takes all; ``posted`` has the id of each post."""

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.posted.append(self.headers["webhook-id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
        server.posted = []
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def test_endpoints_are_seen_tested_paused_and_sent_to_again(dashboard, receiver, tmp_path):
    with broker_with(tmp_path, ALLOWED, "--storage", tmp_path / "broker.db") as broker:
        url = f"http://127.0.0.1:{receiver.server_port}/hook"
        broker.ask("POST", "/v1/webhooks", {"webhook_id": "wh_desk", "url": url, "event_types": ["message.*"]})
        [published] = broker.publish(mail("for the endpoint"))
        log_in(dashboard, broker)
        dashboard.get_by_role("tab", name="Webhooks").click()
        hook = dashboard.get_by_role("region", name="wh_desk")
        expect(hook).to_contain_text(url)
        expect(hook).to_contain_text("all inboxes; message.*")
        delivery = hook.get_by_role("row").filter(has_text=published["event_id"])
        expect(delivery).to_contain_text("delivered")
        hook.get_by_role("button", name="Test").click()
        row(dashboard, "The test was answered with 204").wait_for()
        delivery.get_by_role("button", name="Again").click()
        row(dashboard, "Sent again: 1").wait_for()
        hook.get_by_role("button", name="Pause posts").click()
        expect(hook.get_by_role("button", name="Go on")).to_be_visible()
        expect(hook).to_contain_text("paused")
        hook.get_by_role("combobox").select_option("dead")
        expect(hook).to_contain_text("None.")
        assert receiver.posted.count(published["event_id"]) == 2


def test_where_there_are_none_it_is_said_why(dashboard, tmp_path):
    with broker_with(tmp_path) as broker:
        log_in(dashboard, broker)
        dashboard.get_by_role("tab", name="Webhooks").click()
        expect(dashboard.locator("#pane-webhooks")).to_contain_text("storage.path")
        dashboard.said[:] = [line for line in dashboard.said if "503" not in line]
