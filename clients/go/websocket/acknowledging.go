package websocket

import (
	"context"
	"errors"
	"time"
)

const (
	ackEvery    = time.Second
	ackTimeout  = 10 * time.Second
	holdAfter   = 10 * time.Second
	holdEvery   = 20 * time.Second
	holdSeconds = 60
)

// acknowledgeEachSecond acknowledges what is dealt with, until the context is done.
func (c *Client) acknowledgeEachSecond(ctx context.Context) {
	ticker := time.NewTicker(ackEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.acknowledge(ctx)
		}
	}
}

// acknowledge acknowledges all that is dealt with. What does not come to anything is tried again with the next.
func (c *Client) acknowledge(ctx context.Context) {
	select {
	case c.acknowledging <- struct{}{}: // who closes waits for what is on its way
		defer func() { <-c.acknowledging }()
	case <-ctx.Done():
		return
	}
	c.mu.Lock()
	if c.connection == nil || !c.canAck || !c.place.owes() {
		c.mu.Unlock()
		return
	}
	cursor, eventIDs := c.place.takeAcknowledgement()
	c.mu.Unlock()
	fields := map[string]any{}
	if cursor != "" {
		fields["cursor"] = cursor
	}
	if len(eventIDs) > 0 {
		fields["event_ids"] = eventIDs
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	if !c.say(ctx, "ack", fields) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.place.giveBack(cursor, eventIDs)
	}
}

// say gives a command; it says whether it was answered, be it with a refusal.
func (c *Client) say(ctx context.Context, action string, fields map[string]any) bool {
	_, err := c.give(ctx, action, fields, "", nil)
	var refused *CommandError
	if !errors.As(err, &refused) {
		return err == nil
	}
	if refused.Code == "unknown_action" || refused.Code == "forbidden" { // a broker that knows none, a key that may not
		c.mu.Lock()
		defer c.mu.Unlock()
		c.canAck = false
		c.place.acknowledges = false
	}
	return true
}

// holdMeanwhile holds an event while its handlers are at work; to be called when they have returned.
func (c *Client) holdMeanwhile(ctx context.Context, cancel context.CancelFunc, event *Event) func() {
	held := make(chan struct{})
	timer := time.AfterFunc(holdAfter, func() {
		defer close(held)
		c.hold(ctx, event)
	})
	return func() {
		cancel()
		if !timer.Stop() {
			<-held
		}
	}
}

func (c *Client) hold(ctx context.Context, event *Event) {
	ticker := time.NewTicker(holdEvery)
	defer ticker.Stop()
	for {
		c.mu.Lock()
		can := c.canAck
		c.mu.Unlock()
		if !can {
			return
		}
		timeout, cancel := context.WithTimeout(ctx, holdEvery)
		c.say(timeout, "hold", map[string]any{"event_ids": []string{event.EventID}, "seconds": holdSeconds})
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
