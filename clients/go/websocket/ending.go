package websocket

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const maxWait = time.Minute

var closeWords = map[int]string{
	1000: "closed",
	1001: "the broker or something before it went away",
	1002: "broken framing",
	1006: "the connection was lost",
	1007: "text that is not UTF-8",
	1008: "too many bad frames",
	1009: "a message was too big",
	1011: "the broker failed",
	1012: "the broker restarts",
	4401: "the key was revoked",
	4408: "the broker heard nothing of this client",
	4409: "another connection of the same client_id took over",
}

// ending is how a connection ended: by a close code, or refused with a status and the refusal's own code.
type ending struct {
	reason    string
	closeCode int
	status    int
	code      string
	wait      time.Duration // at least so long it is to be waited
}

// comeBack says whether to open again.
func (e *ending) comeBack() bool {
	switch e.closeCode {
	case 1002, 1007, 1008, 4401, 4409:
		return false
	}
	switch e.status {
	case 400, 401, 403, 404, 426:
		return false
	}
	return true
}

func (e *ending) error() *ConnectionEndedError {
	return &ConnectionEndedError{CloseCode: e.closeCode, Status: e.status, Code: e.code, Message: e.reason}
}

// closed returns the end of a connection that was open.
func closed(code int, reason string) *ending {
	said, known := closeWords[code]
	if !known {
		said = fmt.Sprintf("closed with %d", code)
	}
	if reason != "" && reason != said {
		said += " (" + reason + ")"
	}
	return &ending{reason: said, closeCode: code}
}

// lost returns the end of a connection that broke.
func lost(reason string) *ending { return closed(1006, reason) }

// notOpened returns the end of an opening that came to nothing.
func notOpened(why string) *ending { return &ending{reason: why, closeCode: 1006} }

// refused returns the end of an opening that was refused.
func refused(status int, header http.Header, body []byte, now time.Time) *ending {
	var said struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &said)
	why := said.Error.Message
	if why == "" {
		why = said.Error.Code
	}
	if why == "" {
		why = "no reason given"
	}
	return &ending{
		reason: fmt.Sprintf("refused with %d: %s", status, why),
		status: status,
		code:   said.Error.Code,
		wait:   retryAfter(header.Get("Retry-After"), now),
	}
}

// retryAfter returns what a Retry-After says, a number or a date (RFC 9110 section 10.2.3); 0 for none.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// backOff is how long to wait before the next attempt: by chance, up to twice as long each time.
type backOff struct {
	first    time.Duration
	attempts int
}

// next returns the wait after an ending; chance is from 0 to 1.
func (b *backOff) next(e *ending, asked time.Duration, chance float64) time.Duration {
	b.attempts++
	limit := maxWait
	if shift := b.attempts - 1; shift < 30 && b.first<<shift>>shift == b.first {
		limit = min(maxWait, b.first<<shift)
	}
	least := e.wait
	if least == 0 {
		least = asked
	}
	if e.closeCode == 1012 && least > 0 {
		return least
	}
	return least + time.Duration(chance*float64(limit))
}
