// Package patience holds what the client's driver for the conformance scenes sets, and programs do not.
package patience

import "time"

// Grace is how late a heartbeat may be before a connection is taken for lost.
var Grace = 10 * time.Second
