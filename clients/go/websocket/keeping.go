package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Kept is what a CursorStore keeps: the name of this client, and the cursor of the last event that it has dealt with.
type Kept struct {
	ClientID string
	Cursor   string // empty: it has dealt with none
}

// CursorStore keeps a program's place in the stream over its restarts. The client waits for both, so they are to be
// quick; Save is called by one goroutine at a time.
type CursorStore interface {
	// Load returns what was saved last; nil: nothing yet. It is called once, when the client is run.
	Load(ctx context.Context) (*Kept, error)
	// Save keeps this instead.
	Save(ctx context.Context, kept Kept) error
}

// FileStore is the path of a small JSON file, replaced in one step: whoever is killed while it is written finds the
// one before.
type FileStore string

type keptFile struct {
	ClientID string  `json:"client_id"`
	Cursor   *string `json:"cursor"`
}

// Load returns what the file holds.
func (store FileStore) Load(context.Context) (*Kept, error) {
	text, err := os.ReadFile(string(store))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var file keptFile
	if err := json.Unmarshal(text, &file); err != nil || file.ClientID == "" {
		return nil, fmt.Errorf("%s is no cursor store", string(store))
	}
	kept := &Kept{ClientID: file.ClientID}
	if file.Cursor != nil {
		kept.Cursor = *file.Cursor
	}
	return kept, nil
}

// Save writes the file anew.
func (store FileStore) Save(_ context.Context, kept Kept) error {
	file := keptFile{ClientID: kept.ClientID}
	if kept.Cursor != "" {
		file.Cursor = &kept.Cursor
	}
	text, err := json.Marshal(file)
	if err != nil {
		return err
	}
	beside := fmt.Sprintf("%s.%d.new", filepath.Clean(string(store)), os.Getpid())
	if err := os.WriteFile(beside, text, 0o600); err != nil {
		return err
	}
	return os.Rename(beside, string(store))
}
