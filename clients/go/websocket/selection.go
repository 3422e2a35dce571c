package websocket

import (
	"maps"
	"slices"
)

// All stands for all inboxes that the key reaches.
const All = "*"

// selection is the inboxes that are wanted; not said yet means all that the key reaches.
type selection struct {
	said  bool
	names map[string]bool
}

func newSelection(inboxIDs []string) selection {
	s := selection{said: inboxIDs != nil, names: map[string]bool{}}
	s.add(inboxIDs)
	return s
}

// wanted returns what to ask the broker for: names in order, All alone for all, nothing for none.
func (s *selection) wanted() []string {
	if !s.said || s.names[All] {
		return []string{All}
	}
	return slices.Sorted(maps.Keys(s.names))
}

func (s *selection) wantsAll() bool { return !s.said || s.names[All] }

// add wants these, too; the first that are named are wanted instead of all.
func (s *selection) add(names []string) {
	s.said = s.said || len(names) > 0
	for _, name := range names {
		s.names[name] = true
	}
}

// remove wants these no longer.
func (s *selection) remove(names []string) error {
	if slices.Contains(names, All) {
		s.hold(nil)
		return nil
	}
	if s.wantsAll() {
		return &CommandError{Code: "invalid_params", Message: "Under `*` single inboxes cannot be unsubscribed"}
	}
	for _, name := range names {
		delete(s.names, name)
	}
	return nil
}

// hold hears from the broker what is followed now.
func (s *selection) hold(names []string) {
	s.said, s.names = true, map[string]bool{}
	s.add(names)
}

// narrow hears from the broker that the key reaches less now.
func (s *selection) narrow(names []string) {
	if !s.wantsAll() {
		s.hold(names)
	}
}

// since returns what is wanted beyond what a connection was opened with, and what is wanted no longer.
func (s *selection) since(opened []string) (added, removed []string) {
	all := slices.Contains(opened, All)
	switch {
	case s.wantsAll() && all:
		return nil, nil
	case s.wantsAll():
		return []string{All}, nil
	case all:
		return s.wanted(), []string{All}
	}
	for _, name := range s.wanted() {
		if !slices.Contains(opened, name) {
			added = append(added, name)
		}
	}
	for _, name := range opened {
		if !s.names[name] {
			removed = append(removed, name)
		}
	}
	return added, removed
}

// chunks returns names in lists that stay below so many bytes each, quotes and commas counted.
func chunks(names []string, most int) [][]string {
	var found [][]string
	size := most
	for _, name := range names {
		size += len(name) + 4
		if len(found) == 0 || size > most {
			found = append(found, nil)
			size = len(name) + 4
		}
		found[len(found)-1] = append(found[len(found)-1], name)
	}
	return found
}
