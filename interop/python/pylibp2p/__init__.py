"""py-libp2p as a peer."""
