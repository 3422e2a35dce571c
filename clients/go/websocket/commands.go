package websocket

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

const (
	maxWaiting      = 1_000
	maxWaitingBytes = 8_388_608
)

// pending is one command, until it has its answer.
type pending struct {
	action    string
	requestID string
	number    int // in the order in which they were given
	text      []byte
	heard     hearing
	abandoned bool // nobody waits for its answer, which is heard all the same while this connection lasts

	answered chan struct{} // closed when it has one of these
	result   json.RawMessage
	err      error
}

// hearing is called with a result and the client's lock held, before the next frame is taken. It may be nil.
type hearing func(given *pending, result json.RawMessage)

// commands is all commands of a client that have no answer yet.
type commands struct {
	pending map[string]*pending
	bytes   int
	number  int
	ended   error // why none is taken any more
}

// give notes a command: what it carries beside its action and its request_id, which is made if it is empty.
func (c *commands) give(action string, fields map[string]any, requestID string) (*pending, error) {
	if c.ended != nil {
		return nil, c.ended
	}
	if len(c.pending) >= maxWaiting || c.bytes > maxWaitingBytes {
		return nil, &OverflowingError{Waiting: len(c.pending)}
	}
	if requestID == "" {
		requestID = "req_" + randomHex(12)
	}
	if c.pending[requestID] != nil {
		return nil, fmt.Errorf("websocket: the request_id %q waits for its answer already", requestID)
	}
	said := maps.Clone(fields)
	if said == nil {
		said = map[string]any{}
	}
	said["action"], said["request_id"] = action, requestID
	text, err := json.Marshal(said)
	if err != nil {
		return nil, fmt.Errorf("websocket: %s: %w", action, err)
	}
	c.number++
	given := &pending{action: action, requestID: requestID, number: c.number, text: text, answered: make(chan struct{})}
	if c.pending == nil {
		c.pending = map[string]*pending{}
	}
	c.pending[requestID] = given
	c.bytes += len(text)
	return given, nil
}

// drop waits for an answer no longer, and does not send the command again.
func (c *commands) drop(given *pending) bool {
	if c.pending[given.requestID] != given {
		return false
	}
	delete(c.pending, given.requestID)
	c.bytes -= len(given.text)
	return true
}

// waits says whether a command has no answer yet.
func (c *commands) waits(given *pending) bool { return c.pending[given.requestID] == given }

// unanswered returns what is to be sent to a new connection, in order.
func (c *commands) unanswered() []*pending {
	return slices.SortedFunc(maps.Values(c.pending), func(a, b *pending) int { return cmp.Compare(a.number, b.number) })
}

// answer hears an answer.
func (c *commands) answer(f *frame) {
	given := c.pending[f.RequestID]
	if given == nil || !c.drop(given) {
		return
	}
	if f.Error != nil {
		given.err = f.Error.command(f.Duplicate)
	} else {
		given.result = f.Result
		if given.heard != nil {
			given.heard(given, f.Result)
		}
	}
	close(given.answered)
}

// forget drops those for which nobody waits.
func (c *commands) forget() {
	for _, given := range c.unanswered() {
		if given.abandoned {
			c.drop(given)
		}
	}
}

// refuse lets a command fail: it is not sent again.
func (c *commands) refuse(given *pending, err error) {
	if c.drop(given) {
		given.err = err
		close(given.answered)
	}
}

// refuseLongest lets the longest fail, if there is one.
func (c *commands) refuseLongest(err error) {
	if unanswered := c.unanswered(); len(unanswered) > 0 {
		longest := slices.MaxFunc(unanswered, func(a, b *pending) int { return cmp.Compare(len(a.text), len(b.text)) })
		c.refuse(longest, err)
	}
}

// refuseAll lets those of an action fail.
func (c *commands) refuseAll(action string, err error) {
	for _, given := range c.unanswered() {
		if given.action == action {
			c.refuse(given, err)
		}
	}
}

// end lets all that waits fail, and all that is given from now on.
func (c *commands) end(err error) {
	c.ended = err
	for _, given := range c.unanswered() {
		c.refuse(given, err)
	}
}

type frameError struct {
	Code         string  `json:"code"`
	Message      string  `json:"message"`
	RetryAfterMS float64 `json:"retry_after_ms"`
}

func (e *frameError) command(duplicate bool) *CommandError {
	return &CommandError{
		Code: e.Code, Message: e.Message, RetryAfter: seconds(e.RetryAfterMS/1_000, 0), Duplicate: duplicate,
	}
}

func randomHex(bytes int) string {
	random := make([]byte, bytes)
	_, _ = rand.Read(random) // never fails
	return hex.EncodeToString(random)
}
