package websocket

import "slices"

const (
	maxQueueBytes  = 8_388_608
	maxReadOnBytes = 67_108_864 // are read even so while a command waits for its answer
	lookAhead      = 1_000      // events that are looked through for one that may be handled now
)

// waitingEvent is an event with what it counts for in its queue.
type waitingEvent struct {
	event *Event
	size  int
	key   string // of what only one may be handled at a time; empty: of nothing
}

// queue is the events that wait for their handlers: in order, so many at once, bounded in bytes.
type queue struct {
	concurrency int
	order       Order

	events  []waitingEvent
	busy    map[string]bool
	running int
	bytes   int
	paused  bool
	stopped bool
}

// begin begins with nothing.
func (q *queue) begin() {
	q.events, q.busy, q.running, q.bytes, q.stopped = nil, map[string]bool{}, 0, 0, false
}

// put lets an event wait for its turn.
func (q *queue) put(event *Event, size int) {
	q.events = append(q.events, waitingEvent{event, size, q.keyOf(event)})
	q.bytes += size
}

// take returns the next event that may be handled now, which is under way from now on.
func (q *queue) take() (waitingEvent, bool) {
	if q.paused || q.stopped || q.running >= q.concurrency {
		return waitingEvent{}, false
	}
	place := slices.IndexFunc(q.events[:min(len(q.events), lookAhead)], func(w waitingEvent) bool {
		return w.key == "" || !q.busy[w.key]
	})
	if place < 0 {
		return waitingEvent{}, false
	}
	taken := q.events[place]
	copy(q.events[1:place+1], q.events[:place]) // the few before it, not the many behind it
	q.events[0] = waitingEvent{}
	q.events = q.events[1:]
	q.running++
	if taken.key != "" {
		q.busy[taken.key] = true
	}
	return taken, true
}

// done hears that an event is dealt with.
func (q *queue) done(w waitingEvent) {
	q.running--
	q.bytes -= w.size
	delete(q.busy, w.key)
}

// isFull says whether nothing more should be read; mustRead, whether a handler may wait for what is behind the events.
func (q *queue) isFull(mustRead bool) bool {
	if mustRead {
		return q.bytes > maxReadOnBytes
	}
	return q.bytes > maxQueueBytes
}

func (q *queue) keyOf(event *Event) string {
	switch {
	case q.concurrency == 1 || q.order == OrderNone:
		return ""
	case q.order == OrderInbox:
		return event.InboxID
	}
	return event.thread()
}
