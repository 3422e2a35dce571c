package websocket

import (
	"context"
	"fmt"
)

// load begins at what is kept, the first time.
func (c *Client) load(ctx context.Context) error {
	c.storing.Lock()
	defer c.storing.Unlock()
	if c.loaded {
		return nil
	}
	var kept *Kept
	if c.config.CursorStore != nil {
		var err error
		if kept, err = c.config.CursorStore.Load(ctx); err != nil {
			return fmt.Errorf("websocket: CursorStore: %w", err)
		}
	}
	c.loaded = true
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept != nil {
		c.kept = *kept
		c.place.begin(kept.Cursor)
		if c.clientID == "" {
			c.clientID = kept.ClientID
		}
	}
	if c.clientID == "" {
		c.clientID = "go_" + randomHex(8)
	}
	return nil
}

// keep lets the cursor store have the client's place, if it has changed.
func (c *Client) keep(ctx context.Context) {
	if c.config.CursorStore == nil {
		return
	}
	c.storing.Lock()
	defer c.storing.Unlock()
	c.mu.Lock()
	kept := Kept{ClientID: c.clientID, Cursor: c.place.handled}
	c.mu.Unlock()
	if kept == c.kept {
		return
	}
	if err := guarded(func() error { return c.config.CursorStore.Save(ctx, kept) }); err != nil {
		c.mu.Lock()
		c.notifyFailure("the cursor store", err)
		c.mu.Unlock()
		return
	}
	c.kept = kept
}
