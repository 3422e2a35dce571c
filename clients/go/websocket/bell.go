package websocket

import (
	"context"
	"sync"
)

// bell wakes those who wait until something under a lock has changed.
type bell struct {
	mu      sync.Locker
	changed chan struct{}
}

// ring lets those who wait look again; the lock is held.
func (b *bell) ring() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// until waits until something holds, which is asked with the lock held, or the context is done.
func (b *bell) until(ctx context.Context, holds func() bool) error {
	for {
		b.mu.Lock()
		if holds() {
			b.mu.Unlock()
			return nil
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
