package websocket

import (
	"context"
	"fmt"
	"sync"
)

// atWork is what a handler that is at work gives its commands: the event, its lease, and how often it has given each.
type atWork struct {
	client  *Client
	event   *Event
	leaseID string

	mu    sync.Mutex
	given map[[2]string]int
}

type atWorkKey struct{}

func withWork(ctx context.Context, client *Client, event *Event, leaseID string) context.Context {
	work := &atWork{client: client, event: event, leaseID: leaseID, given: map[[2]string]int{}}
	return context.WithValue(ctx, atWorkKey{}, work)
}

// atWorkOf returns what is at work with a context; nil: it is no handler's.
func atWorkOf(ctx context.Context) *atWork {
	work, _ := ctx.Value(atWorkKey{}).(*atWork)
	return work
}

// isOf says whether it is a handler of this client.
func (w *atWork) isOf(client *Client) bool { return w != nil && w.client == client }

// once returns the name by which the next command of this action in this inbox is done once.
func (w *atWork) once(action, inboxID string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given[[2]string{action, inboxID}]++
	if number := w.given[[2]string{action, inboxID}]; number > 1 {
		return fmt.Sprintf("%s:%d", w.event.EventID, number)
	}
	return w.event.EventID
}
