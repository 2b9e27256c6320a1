package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const usage = `usage: peer listen [MULTIADDR] [options]        default /ip4/127.0.0.1/udp/0/webrtc-direct
       peer dial MULTIADDR [options] [CASE...]   default: every case but serve

options of both
  --ice-timeouts D,F   seconds without a packet until ICE is disconnected, then failed (default 20,30)

options of dial
  --v2                 webrtc-direct v2
  --connects N         dials so many times, one after another; the cases run over the last connection
  --rounds N           repeats echo-200x10k (default 1)
  --agent PREFIX       what the remote's agentVersion begins with (default anabranch/)
  --timeout-s S        for the whole program (default 120)
`

const (
	defaultListenAddress = "/ip4/127.0.0.1/udp/0/webrtc-direct"
	defaultAgent         = "anabranch/"
	defaultTimeout       = 120 * time.Second
)

type helpCommand struct{}

type listenCommand struct {
	address     address
	iceTimeouts iceTimeouts
}

type dialCommand struct {
	address     address
	version     int
	connects    int
	rounds      int
	agent       string
	timeout     time.Duration
	iceTimeouts iceTimeouts
	cases       []namedCase
}

// arguments yields the words of a command line.
type arguments []string

func (a *arguments) next() (string, bool) {
	if len(*a) == 0 {
		return "", false
	}
	word := (*a)[0]
	*a = (*a)[1:]
	return word, true
}

func (a *arguments) value(option string) (string, error) {
	word, ok := a.next()
	if !ok {
		return "", fmt.Errorf("%s needs a value", option)
	}
	return word, nil
}

func (a *arguments) positive(option string) (int, error) {
	word, err := a.value(option)
	if err != nil {
		return 0, err
	}
	number, err := strconv.Atoi(word)
	if err != nil || number < 1 {
		return 0, fmt.Errorf("%s: %q is not a positive number", option, word)
	}
	return number, nil
}

func (a *arguments) iceTimeouts(option string) (iceTimeouts, error) {
	word, err := a.value(option)
	if err != nil {
		return iceTimeouts{}, err
	}
	disconnected, failed, ok := strings.Cut(word, ",")
	d, errD := parseSeconds(disconnected)
	f, errF := parseSeconds(failed)
	if !ok || errD != nil || errF != nil {
		return iceTimeouts{}, fmt.Errorf("%s: %q is not two times in seconds", option, word)
	}
	return iceTimeouts{disconnected: d, failed: f}, nil
}

func parseSeconds(text string) (time.Duration, error) {
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds > 0 && seconds < 86400) {
		return 0, errors.New("not a positive number of seconds")
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func parseCommandLine(words arguments) (any, error) {
	command, ok := words.next()
	if !ok {
		return nil, errors.New("a command is missing")
	}
	switch command {
	case "listen":
		return parseListen(words)
	case "dial":
		return parseDial(words)
	case "help", "-h", "--help":
		return helpCommand{}, nil
	}
	return nil, fmt.Errorf("unknown command %q", command)
}

func parseListen(words arguments) (any, error) {
	command := listenCommand{iceTimeouts: defaultICETimeouts}
	text := ""
	for {
		word, ok := words.next()
		if !ok {
			break
		}
		var err error
		switch {
		case word == "--ice-timeouts":
			command.iceTimeouts, err = words.iceTimeouts(word)
		case strings.HasPrefix(word, "-") || text != "":
			err = fmt.Errorf("unexpected %q", word)
		default:
			text = word
		}
		if err != nil {
			return nil, err
		}
	}
	if text == "" {
		text = defaultListenAddress
	}
	var err error
	command.address, err = parseAddress(text)
	return command, err
}

func parseDial(words arguments) (any, error) {
	command := dialCommand{
		version:     1,
		connects:    1,
		rounds:      1,
		agent:       defaultAgent,
		timeout:     defaultTimeout,
		iceTimeouts: defaultICETimeouts,
	}
	target := ""
	wanted := map[string]bool{}
	for {
		word, ok := words.next()
		if !ok {
			break
		}
		var err error
		switch {
		case word == "--v2":
			command.version = 2
		case word == "--connects":
			command.connects, err = words.positive(word)
		case word == "--rounds":
			command.rounds, err = words.positive(word)
		case word == "--agent":
			command.agent, err = words.value(word)
		case word == "--timeout-s":
			var seconds int
			seconds, err = words.positive(word)
			command.timeout = time.Duration(seconds) * time.Second
		case word == "--ice-timeouts":
			command.iceTimeouts, err = words.iceTimeouts(word)
		case strings.HasPrefix(word, "-"):
			err = fmt.Errorf("unknown option %q", word)
		case target == "":
			target = word
		case findCase(word) == nil:
			err = fmt.Errorf("unknown case %q", word)
		default:
			wanted[word] = true
		}
		if err != nil {
			return nil, err
		}
	}
	if target == "" {
		return nil, errors.New("dial needs the address of a listener")
	}
	for _, c := range allCases {
		if wanted[c.name] || (len(wanted) == 0 && !c.onRequest) {
			command.cases = append(command.cases, c)
		}
	}
	var err error
	command.address, err = parseAddress(target)
	if err == nil && len(command.address.certificateHash) == 0 {
		err = errors.New("the address of a listener has a certhash")
	}
	return command, err
}
