package websocket

import (
	"container/list"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxProcessed      = 10_000
	webhookTolerance  = 5 * time.Minute
	webhookSecretMark = "whsec_"
	webhookVersion    = "v1"
)

// Verify returns the event of a webhook whose signature is good, by the rules of Standard Webhooks: five minutes of
// tolerance, any of several signatures. The body is as it came, byte for byte. What is not good is a *BadSignatureError.
func Verify(header http.Header, body []byte, secret string) (*Event, error) {
	said := func(name string) string {
		for given, values := range header {
			if strings.EqualFold(given, name) && len(values) > 0 {
				return values[0]
			}
		}
		return ""
	}
	id, at, signatures := said("webhook-id"), said("webhook-timestamp"), said("webhook-signature")
	if id == "" || at == "" || signatures == "" {
		return nil, &BadSignatureError{"webhook-id, webhook-timestamp and webhook-signature are needed"}
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, webhookSecretMark))
	if err != nil {
		return nil, &BadSignatureError{"the secret is none such as whsec_…"}
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return nil, &BadSignatureError{"webhook-timestamp is no time"}
	}
	if age := time.Since(time.Unix(seconds, 0)); age > webhookTolerance || age < -webhookTolerance {
		return nil, &BadSignatureError{"it was signed more than five minutes ago, or will be"}
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body)
	if !anyIs(signatures, mac.Sum(nil)) {
		return nil, &BadSignatureError{"no signature is that of the secret"}
	}
	var f frame
	if err := decodeFrame(body, &f); err != nil || f.Type == "" || f.EventID == "" {
		return nil, &BadSignatureError{"the body is no event"}
	}
	return eventOf(&f, body), nil
}

func anyIs(signatures string, expected []byte) bool {
	found := false
	for signature := range strings.FieldsSeq(signatures) {
		version, text, _ := strings.Cut(signature, ",")
		given, err := base64.StdEncoding.DecodeString(text)
		if version == webhookVersion && err == nil && hmac.Equal(given, expected) {
			found = true
		}
	}
	return found
}

// Processed says that an event is dealt with; it returns whether it was not before. No client in this process hands it
// to its handlers then.
func Processed(event *Event) bool { return tell(event.EventID, event.InboxID) }

// ProcessedID is Processed of an event of which only the id is known, in whichever inbox.
func ProcessedID(eventID string) bool { return tell(eventID, anyInbox) }

// IsProcessed says whether an event is dealt with, or being dealt with: by handlers of a client in this process, or as
// Processed was told.
func IsProcessed(event *Event) bool { return isTold(event.EventID, event.InboxID) }

// IsProcessedID is IsProcessed of an event of which only the id is known, in whichever inbox.
func IsProcessedID(eventID string) bool { return isTold(eventID, anyInbox) }

func tell(eventID, inboxID string) bool {
	isNew := !isTold(eventID, inboxID)
	told.addID(eventID, inboxID)
	return isNew
}

func isTold(eventID, inboxID string) bool {
	return told.hasID(eventID, inboxID) || taken.hasID(eventID, inboxID)
}

var (
	told  = newMemory() // what the program has said that it has dealt with: no client hands it to handlers
	taken = newMemory() // what the handlers of a client have dealt with, or are at work on
)

const anyInbox = "*" // no inbox has this name

// memory is events by id and inbox; the oldest are forgotten.
type memory struct {
	mu    sync.Mutex
	order *list.List // of *remembered
	byID  map[string]*list.Element
}

type remembered struct {
	eventID string
	inboxes map[string]bool
}

func newMemory() *memory { return &memory{order: list.New(), byID: map[string]*list.Element{}} }

func (m *memory) add(event *Event)      { m.addID(event.EventID, event.InboxID) }
func (m *memory) has(event *Event) bool { return m.hasID(event.EventID, event.InboxID) }

func (m *memory) addID(eventID, inboxID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.byID[eventID]
	if known == nil {
		known = m.order.PushBack(&remembered{eventID, map[string]bool{}})
		m.byID[eventID] = known
	}
	known.Value.(*remembered).inboxes[inboxID] = true
	m.order.MoveToBack(known)
	if m.order.Len() > maxProcessed {
		delete(m.byID, m.order.Remove(m.order.Front()).(*remembered).eventID)
	}
}

func (m *memory) hasID(eventID, inboxID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.byID[eventID]
	if known == nil {
		return false
	}
	inboxes := known.Value.(*remembered).inboxes
	return inboxID == anyInbox || inboxes[inboxID] || inboxes[anyInbox]
}

func (m *memory) remove(event *Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.byID[event.EventID]
	if known == nil {
		return
	}
	inboxes := known.Value.(*remembered).inboxes
	delete(inboxes, event.InboxID)
	if len(inboxes) == 0 {
		m.order.Remove(known)
		delete(m.byID, event.EventID)
	}
}
