package main

import (
	"crypto/rand"
	"fmt"
	"strings"
)

const (
	ufragPrefixV1 = "libp2p+webrtc+v1/"
	ufragPrefixV2 = "libp2p+webrtc+v2/"

	iceCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	// The alphabet of RFC 8839, section 5.4.
	shortestUfrag    = 4
	shortestPassword = 22
	longestOfBoth    = 256

	randomCharacters = 32
)

// credentials are those of both sides of one connection. The server's password is its ufrag.
type credentials struct {
	serverUfrag    string
	clientUfrag    string
	clientPassword string
}

// newCredentials makes those of a dialler. Version 1 has one value for everything; version 2 keeps
// the client's as a browser makes them and embeds the client's password in the server's ufrag.
func newCredentials(version int) (credentials, error) {
	password, err := randomICEString()
	if err != nil {
		return credentials{}, err
	}
	if version == 1 {
		one := ufragPrefixV1 + password
		return credentials{serverUfrag: one, clientUfrag: one, clientPassword: one}, nil
	}
	ufrag, err := randomICEString()
	return credentials{ufragPrefixV2 + password, ufrag, password}, err
}

func randomICEString() (string, error) {
	random := make([]byte, randomCharacters)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	for i, b := range random {
		random[i] = iceCharacters[int(b)%len(iceCharacters)]
	}
	return string(random), nil
}

// credentialsOf derives them from the USERNAME of a dialler's first check.
func credentialsOf(username string) (credentials, error) {
	server, client, _ := strings.Cut(username, ":")
	if !isICEString(server, shortestUfrag) || !isICEString(client, shortestUfrag) {
		return credentials{}, fmt.Errorf("no two ufrags: %q", username)
	}
	switch {
	case strings.HasPrefix(server, ufragPrefixV1):
		return credentials{server, client, client}, nil
	case strings.HasPrefix(server, ufragPrefixV2):
		password := strings.TrimPrefix(server, ufragPrefixV2)
		if !isICEString(password, shortestPassword) {
			return credentials{}, fmt.Errorf("no password in %q", server)
		}
		return credentials{server, client, password}, nil
	}
	return credentials{}, fmt.Errorf("neither version 1 nor 2: %q", server)
}

func isICEString(text string, shortest int) bool {
	return len(text) >= shortest && len(text) <= longestOfBoth &&
		strings.Trim(text, iceCharacters) == ""
}
