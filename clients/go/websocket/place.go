package websocket

import (
	"container/list"
	"time"
)

const (
	maxKnown  = 10_000
	maxSingly = 1_000 // events of one acknowledgement
)

// seen is the last events by inbox and id, so that one that comes again is known.
type seen struct {
	order *list.List
	names map[[2]string]*list.Element
}

func newSeen() seen { return seen{order: list.New(), names: map[[2]string]*list.Element{}} }

// isNew says whether it is the first time that this event comes; from now on it is not.
func (s *seen) isNew(event *Event) bool {
	name := [2]string{event.InboxID, event.EventID}
	if known := s.names[name]; known != nil {
		s.order.MoveToBack(known)
		return false
	}
	s.names[name] = s.order.PushBack(name)
	if s.order.Len() > maxKnown {
		delete(s.names, s.order.Remove(s.order.Front()).([2]string))
	}
	return true
}

// forget takes it for new when it comes again.
func (s *seen) forget(event *Event) {
	name := [2]string{event.InboxID, event.EventID}
	if known := s.names[name]; known != nil {
		s.order.Remove(known)
		delete(s.names, name)
	}
}

type step struct {
	cursor  string
	eventID string // empty: a cursor that came with no event
	done    bool
	covered bool // whether the acknowledgement of a cursor is for it, too
}

// place is the cursors of one client.
//
// received is of the last frame that came: what came is kept, so a lost connection is opened again there. handled is
// of the last event before which all is dealt with: a program that starts again begins there. Acknowledged is a cursor
// as far as all before it is dealt with, and beyond it single events: those whose handlers have returned before an
// earlier one's, and all of the window after one that failed.
type place struct {
	received string
	handled  string
	// acknowledges says whether what is to be acknowledged is kept until it is taken.
	acknowledges bool

	steps         []*step
	byEvent       map[*Event]*step
	blockedUntil  time.Time
	toAcknowledge string
	singly        []*step
	givenBack     []string
}

func newPlace(acknowledges bool) place {
	return place{acknowledges: acknowledges, byEvent: map[*Event]*step{}}
}

// begin begins at a cursor that was kept.
func (p *place) begin(cursor string) { p.received, p.handled = cursor, cursor }

// moved hears of a cursor that comes with no event.
func (p *place) moved(cursor string) {
	p.received = cursor
	if len(p.steps) > 0 {
		p.steps = append(p.steps, &step{cursor: cursor, done: true})
	} else {
		p.handled = cursor
	}
}

// came hears of an event that will be handled.
func (p *place) came(event *Event) {
	p.received = event.Cursor
	step := &step{cursor: event.Cursor, eventID: event.EventID}
	p.steps = append(p.steps, step)
	p.byEvent[event] = step
}

// beginAgain goes on from what is handled; it returns what had come beyond it and was not: it will come again.
func (p *place) beginAgain() []*Event {
	var undone []*Event
	for event := range p.byEvent {
		undone = append(undone, event)
	}
	clear(p.byEvent)
	p.steps = nil
	p.received = p.handled
	return undone
}

// dealtWith hears that the handlers of an event have returned, or that one has failed.
func (p *place) dealtWith(event *Event, now time.Time, failed bool, window time.Duration) {
	done := p.byEvent[event]
	if done == nil {
		return // of a run before this one
	}
	delete(p.byEvent, event)
	done.done = true
	blocked := now.Before(p.blockedUntil)
	if failed {
		p.blockedUntil, blocked = now.Add(window), true
	} else if p.acknowledges {
		p.singly = append(p.singly, done)
	}
	for len(p.steps) > 0 && p.steps[0].done {
		passed := p.steps[0]
		p.steps = p.steps[1:]
		p.handled = passed.cursor
		if p.acknowledges && !blocked {
			p.toAcknowledge = passed.cursor
			passed.covered = true
		}
	}
}

// takeAcknowledgement returns the cursor and the single events that are to be acknowledged now; they count as taken.
func (p *place) takeAcknowledgement() (string, []string) {
	cursor, ids := p.toAcknowledge, p.givenBack
	for _, step := range p.singly {
		if !step.covered {
			ids = append(ids, step.eventID)
		}
	}
	most := min(len(ids), maxSingly)
	p.toAcknowledge, p.singly, p.givenBack = "", nil, ids[most:]
	return cursor, ids[:most:most]
}

// giveBack owes again what was taken, and did not come to anything.
func (p *place) giveBack(cursor string, eventIDs []string) {
	if p.toAcknowledge == "" {
		p.toAcknowledge = cursor
	}
	p.givenBack = append(eventIDs, p.givenBack...)
}

// owes says whether something is to be acknowledged.
func (p *place) owes() bool {
	return p.toAcknowledge != "" || len(p.singly) > 0 || len(p.givenBack) > 0
}
