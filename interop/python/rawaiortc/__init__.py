"""aiortc as a webrtc-direct peer, with everything above its data channels by hand."""
