"""Workers in Go that share a queue of a real broker: each event is one worker's, and done once."""

import json
import urllib.request

from processes import KEY, serving

from broker.keys import hash_key

SECONDS = 60
CONFIG = f"""
[[accounts]]
id = "acct_q"
[[accounts.keys]]
id = "key_q"
sha256 = "{hash_key(KEY)}"
[[accounts.queues]]
id = "support"
inbox_ids = ["in_q"]
order = "none"
"""
WORKERS = """
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/daimon-email/go-sdk/websocket"
)

func main() {
	ctx, stop := interrupted()
	defer stop()
	for worker := range 2 {
		client := websocket.New(websocket.Config{AutoReconnect: true, InboxIDs: []string{}})
		client.OnError(func(err error) { fmt.Println(err) })
		go client.Run(ctx)
		go client.Queue(ctx, "support", func(ctx context.Context, lease *websocket.Lease) error {
			fmt.Println(lease.Event.EventID, lease.Attempt)
			if lease.Event.EventID == "evt_3" {
				return errors.New("not today")
			}
			return nil
		})
		fmt.Println("worker", worker)
	}
	<-ctx.Done()
}
"""


def mail(number):
    message = {"message_id": f"msg_{number}", "from": "ada@example.com", "subject": f"Mail {number}"}
    event = {"type": "message.received", "inbox_id": "in_q", "event_id": f"evt_{number}"}
    return {**event, "payload": {"message": message}}


def asked(url, path, body=None):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=SECONDS) as answer:
        return json.load(answer)["result"]


def test_each_mail_is_given_to_one_worker_and_what_fails_is_reported(program, running, tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(f'[storage]\npath = "{tmp_path / "broker.db"}"\nmin_free_bytes = 0\n{CONFIG}')
    with serving("--config", path) as (_, url), running(program(WORKERS), url, KEY) as process:
        asked(url, "/v1/events", [mail(number) for number in range(6)])
        said = {process.stdout.readline().rstrip() for _ in range(9)}
    first = {f"evt_{number} 1" for number in range(6)}
    assert said == {"worker 0", "worker 1", *first, "work on evt_3: not today"}
