package websocket

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
)

// Handler handles an event. An error that it returns is reported, and the event is not acknowledged. Commands that are
// given with its context are done once for the event, however often it comes. The context is done when the client has
// ended for good and waited 30 s for its handlers.
type Handler func(ctx context.Context, event *Event) error

// handlers is what a program has registered; the client's lock guards it.
type handlers struct {
	events       []registered
	connected    []func()
	disconnected []func(reason string)
	gap          []func(gap Gap)
	failed       []func(err error)
}

type registered struct {
	pattern string
	handle  Handler
}

// of returns the handlers of a type, in the order in which they were registered.
func (h *handlers) of(eventType string) []Handler {
	var found []Handler
	for _, r := range h.events {
		prefix, isPrefix := strings.CutSuffix(r.pattern, "*")
		if r.pattern == eventType || isPrefix && strings.HasPrefix(eventType, prefix) {
			found = append(found, r.handle)
		}
	}
	return found
}

// On registers a handler for a type of events; "message.*" and "*" are for all that begin so.
func (c *Client) On(eventType string, handle Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers.events = append(c.handlers.events, registered{eventType, handle})
}

// OnMessageReceived registers a handler of mails that come. Message.Context is the handler's.
func (c *Client) OnMessageReceived(handle func(message *Message)) {
	c.On("message.received", func(_ context.Context, event *Event) error {
		handle(event.Message())
		return nil
	})
}

// OnConnected registers what is called each time that the connection is open.
func (c *Client) OnConnected(handle func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers.connected = append(c.handlers.connected, handle)
}

// OnDisconnected registers what is called each time that the connection is lost, or was refused, with why in words.
func (c *Client) OnDisconnected(handle func(reason string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers.disconnected = append(c.handlers.disconnected, handle)
}

// OnGap registers what is told of events that are gone for good, before any event that comes after them.
func (c *Client) OnGap(handle func(gap Gap)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers.gap = append(c.handlers.gap, handle)
}

// OnError registers what is told of failures that belong to no call: of a handler, of the token function, of the cursor
// store, and what the broker said of a frame. Several may be told at once. Without it they are logged.
func (c *Client) OnError(handle func(err error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers.failed = append(c.handlers.failed, handle)
}

// report says that something failed: to those who want to hear of it, else to the log.
func (c *Client) report(what string, err error) {
	err = fmt.Errorf("%s: %w", what, err)
	c.mu.Lock()
	told := c.handlers.failed
	c.mu.Unlock()
	if len(told) == 0 {
		c.config.Logger.Error("daimon.email: something failed", "error", err)
	}
	for _, tell := range told {
		if failed := guarded(func() error { tell(err); return nil }); failed != nil {
			c.config.Logger.Error("daimon.email: a handler of errors failed", "error", failed, "told", err)
		}
	}
}

// handle calls all handlers of an event; it says whether none of them failed.
func (c *Client) handle(ctx context.Context, event *Event) bool {
	c.mu.Lock()
	handlers := c.handlers.of(event.Type)
	c.mu.Unlock()
	well := true
	for _, handle := range handlers {
		if err := guarded(func() error { return handle(ctx, event) }); err != nil {
			well = false
			c.report("a handler of "+event.Type, err)
		}
	}
	return well
}

// guarded calls a function of the program, whose panic is an error like any other.
func guarded(call func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &PanicError{Value: value, Stack: debug.Stack()}
		}
	}()
	return call()
}
