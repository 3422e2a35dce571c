package websocket

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ConnectionEndedError says why the connection is gone and is not opened again. Run, and commands that had no answer
// then, return it.
type ConnectionEndedError struct {
	CloseCode int    // of the WebSocket's end: 1006 where it broke or never was; 0 where the opening was refused
	Status    int    // of HTTP, where the opening was refused; else 0
	Code      string // the refusal's own, such as "unauthorized"
	Message   string // in words
}

func (e *ConnectionEndedError) Error() string { return "websocket: " + e.Message }

func errClosed() *ConnectionEndedError {
	return &ConnectionEndedError{CloseCode: 1000, Message: "the client is closed"}
}

func errStaysClosed() *ConnectionEndedError {
	return &ConnectionEndedError{CloseCode: 1000, Message: "the client is closed, and stays so: make another"}
}

// CommandError says that the broker, or who does the command, refused it.
type CommandError struct {
	Code       string
	Message    string
	RetryAfter time.Duration // when it may be tried again; 0: not said
	Duplicate  bool          // whether it is what another command with the same Once was refused with
}

func (e *CommandError) Error() string { return "websocket: " + e.Code + ": " + e.Message }

func errTooLarge() *CommandError {
	return &CommandError{Code: "too_large", Message: "The broker takes no message of this size"}
}

// TimedOutError says that a command had no answer in time. It may have been done. errors.Is(err,
// context.DeadlineExceeded) holds.
type TimedOutError struct {
	Action string
}

func (e *TimedOutError) Error() string {
	return fmt.Sprintf("websocket: %s had no answer in time; it may have been done", e.Action)
}

// Timeout makes it a timeout as package net has them.
func (e *TimedOutError) Timeout() bool { return true }

// Is says that it is a deadline that was exceeded.
func (e *TimedOutError) Is(target error) bool { return target == context.DeadlineExceeded }

// OverflowingError says that too much waits for answers already.
type OverflowingError struct {
	Waiting int // commands
}

func (e *OverflowingError) Error() string {
	return fmt.Sprintf("websocket: %d commands wait for their answers", e.Waiting)
}

// BadSignatureError says that a webhook was not sent by this broker, or not lately.
type BadSignatureError struct {
	Reason string
}

func (e *BadSignatureError) Error() string { return "websocket: webhook: " + e.Reason }

// PanicError is what a handler has panicked with: it is reported as any failure of a handler is.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

// ErrNoMatch is what WaitFor returns when its time is over.
var ErrNoMatch = errors.New("websocket: no event like that came in time")
