// Command peer is a libp2p peer on pion/webrtc whose substreams behave as go-libp2p's do.
package main

import (
	"fmt"
	"os"
)

// Exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	command, err := parseCommandLine(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "peer: %v\n\n%s", err, usage)
		os.Exit(exitUsage)
	}
	report := newReport(os.Stdout)
	switch command := command.(type) {
	case helpCommand:
		fmt.Print(usage)
	case listenCommand:
		err = listen(command, report)
	case dialCommand:
		err = dial(command, report)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "peer: %v\n", err)
	}
	if err != nil || report.failed() {
		os.Exit(exitFailed)
	}
}
