"""aiortc as a webrtc-direct peer, with own code above its data channels."""
