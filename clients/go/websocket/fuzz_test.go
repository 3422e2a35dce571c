package websocket

import (
	"encoding/json"
	"log/slog"
	"testing"
)

func FuzzNoTextOfTheOtherSideBreaksTheClient(f *testing.F) {
	for _, text := range []string{
		`{"type":"message.received","event_id":"evt_1","inbox_id":"a","cursor":"c1","created_at":"2026-11-23T10:00:00Z","payload":{"message":{"to":[1]}}}`,
		`{"type":"response","request_id":"r1","action":"subscribe","result":{"inbox_ids":["a"],"cursor":"c2"}}`,
		`{"type":"response","request_id":"late:0","error":{"code":"forbidden","message":"no","retry_after_ms":1e300}}`,
		`{"type":"response","request_id":"r2","result":{"leases":[{"lease_id":"l1","event":null}]}}`,
		`{"type":"connection.updated","inbox_ids":["a",1]}`, `{"type":"connection.cursor","cursor":"c3"}`,
		`{"type":"replay.gap","from":null,"to":"c4","count":null}`, `{"type":"server.draining","reconnect_after_ms":-1}`,
		`{"type":"error"}`, `{"type":"connection.ready","cursor":"c0","limits":{"max_message_bytes":-5}}`, `[]`, `null`, `{`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		client := New(Config{APIKey: "k", Logger: slog.New(slog.DiscardHandler), Concurrency: 2, InboxIDs: []string{"a"}})
		client.queue.paused = true // what is handed on is for other tests
		client.late = map[string]bool{"late:0": true}
		if said, err := parseReady(text); err == nil {
			client.ready = said
			client.rest(opening{names: []string{"a", "b"}}, []string{"c"})
		}
		lease, _ := client.commands.give("lease", nil, "r2")
		lease.abandoned = true
		lease.heard = func(*pending, json.RawMessage) { client.giveBack("l1") }
		_, _ = client.commands.give("subscribe", nil, "r1")
		client.takeText(t.Context(), text)
		for _, waiting := range client.queue.events {
			waiting.event.Message()
			waiting.event.thread()
		}
		_ = client.bell.until(t.Context(), client.notices.told)
	})
}
