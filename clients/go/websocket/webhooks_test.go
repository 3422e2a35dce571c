package websocket

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const secret = "whsec_a2V5b2Z0aGlzdGVzdA=="

const body = `{"type":"message.received","event_id":"evt_hook","inbox_id":"inbox_a","created_at":"2026-11-23T10:00:00Z",` +
	`"cursor":"c1","payload":{"message":{"subject":"Grüße"}}}`

func signed(age time.Duration, body, secret string) http.Header {
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	at := fmt.Sprint(time.Now().Add(-age).Unix())
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "evt_hook.%s.%s", at, body)
	return http.Header{
		"webhook-id": {"evt_hook"}, "Webhook-Timestamp": {at},
		"Webhook-Signature": {"v1,bm9uZQ== v2,x v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}
}

func TestAWebhookIsBelievedWhenItsSignatureIsGood(t *testing.T) {
	event, err := Verify(signed(4*time.Minute, body, secret), []byte(body), secret)
	if err != nil || event.EventID != "evt_hook" || event.Message().Subject != "Grüße" || event.InboxID != "inbox_a" {
		t.Errorf("%v %v", event, err)
	}
	without := signed(0, body, secret)
	delete(without, "webhook-id")
	timeless := signed(0, body, secret)
	timeless.Set("Webhook-Timestamp", "today")
	for name, given := range map[string]struct {
		header       http.Header
		body, secret string
	}{
		"old":             {signed(6*time.Minute, body, secret), body, secret},
		"from the future": {signed(-6*time.Minute, body, secret), body, secret},
		"another body":    {signed(0, body, secret), body + " ", secret},
		"another secret":  {signed(0, body, secret), body, "whsec_b3RoZXI="},
		"no secret":       {signed(0, body, secret), body, "whsec_!"},
		"no id":           {without, body, secret},
		"no time":         {timeless, body, secret},
		"no headers":      {nil, body, secret},
		"no event":        {signed(0, "[]", secret), "[]", secret},
	} {
		var bad *BadSignatureError
		if _, err := Verify(given.header, []byte(given.body), given.secret); !errors.As(err, &bad) {
			t.Errorf("%s: it came to %v", name, err)
		}
	}
}

func TestAnEventIsProcessedOnceByHandlersAndWebhooks(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		told, taken = newMemory(), newMemory()
		client, got := b.client(Config{}), &recorded{}
		client.OnError(func(error) {})
		client.On("*", func(_ context.Context, event *Event) error {
			got.add(event.EventID)
			if !IsProcessed(event) || !IsProcessedID(event.EventID) {
				t.Error("what is being dealt with is not processed")
			}
			if event.EventID == "hook_fails" {
				return errors.New("not today")
			}
			return nil
		})
		b.run(client)
		s := b.next()
		event := func(id, inbox string) *Event { return &Event{EventID: id, InboxID: inbox} }
		if !Processed(event("hook_1", "inbox_a")) || Processed(event("hook_1", "inbox_a")) || !ProcessedID("hook_2") {
			t.Error("it was processed before, or was not then")
		}
		if !IsProcessedID("hook_1") || IsProcessed(event("hook_1", "inbox_b")) || !IsProcessed(event("hook_2", "inbox_b")) {
			t.Error("an event is processed in its inbox; an id in all")
		}
		for number, id := range []string{"hook_1", "hook_2", "hook_3", "hook_fails"} {
			s.say(mail(number+1, said{"event_id": id}))
		}
		s.say(mail(5, said{"event_id": "hook_1", "inbox_id": "inbox_b"}))
		got.expect(t, "hook_3", "hook_fails", "hook_1")
		if !IsProcessedID("hook_3") || IsProcessedID("hook_fails") || Processed(event("hook_3", "inbox_a")) {
			t.Error("an event is processed when its handlers have not failed")
		}
		synctest.Wait()
	})
}

func TestTheOldestThatWereProcessedAreForgotten(t *testing.T) {
	m := newMemory()
	for number := range maxProcessed + 1 {
		m.addID(fmt.Sprint(number), "inbox_a")
	}
	if m.hasID("0", anyInbox) || !m.hasID("1", anyInbox) || !m.hasID(fmt.Sprint(maxProcessed), "inbox_a") {
		t.Error("not the oldest was forgotten")
	}
}
