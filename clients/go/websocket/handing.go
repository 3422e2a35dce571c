package websocket

import (
	"context"
	"time"
)

// hasRoom says whether more is to be read; the lock is held.
func (c *Client) hasRoom() bool { return !c.queue.isFull(len(c.commands.pending) > 0) }

// pump hands on what may be handled now; the lock is held.
func (c *Client) pump() {
	for !c.notices.hold() {
		next, found := c.queue.take()
		if !found {
			return
		}
		go c.work(c.life, next)
	}
}

// work lets an event be handled.
func (c *Client) work(l *life, next waitingEvent) {
	well := false
	defer func() {
		c.mu.Lock()
		c.place.dealtWith(next.event, time.Now(), !well, c.ready.window())
		c.mu.Unlock()
		c.keep(l.handling)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.life == l {
			c.queue.done(next)
			c.pump()
			c.bell.ring()
		}
	}()
	if told.has(next.event) { // by a webhook, say
		well = true
		return
	}
	taken.add(next.event)
	defer func() {
		if !well {
			taken.remove(next.event)
		}
	}()
	well = c.handOn(l, next.event)
}

// handOn calls the handlers of an event, and holds it meanwhile; it says whether none failed.
func (c *Client) handOn(l *life, event *Event) bool {
	ctx, cancel := context.WithCancel(withWork(l.handling, c, event, ""))
	defer cancel()
	event.ctx = ctx
	if c.config.Ack == AckAuto {
		defer c.holdMeanwhile(ctx, cancel, event)()
	}
	return c.handle(ctx, event)
}
