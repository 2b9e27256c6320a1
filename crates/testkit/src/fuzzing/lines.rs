//! Arbitrary lines of HTTP requests and of PROXY headers.

use super::Input;

/// Lines and fragments of requests, each encoded by one byte of an input.
const LINES: [&str; 48] = [
    "GET / HTTP/1.1\r\n",
    "GET /a?b HTTP/1.1\r\n",
    "GET http://example.org/a HTTP/1.1\r\n",
    "POST / HTTP/1.1\r\n",
    "GET / HTTP/1.0\r\n",
    "PRI * HTTP/2.0\r\n",
    "Host: example.org\r\n",
    "host: localhost:80\r\n",
    "HOST: 127.0.0.1:8080\r\n",
    "Host: [::1]\r\n",
    "Host: evil.example\r\n",
    "Host:\r\n",
    "Connection: Upgrade\r\n",
    "Connection: keep-alive\r\n",
    "Upgrade: websocket\r\n",
    "Upgrade: h2c\r\n",
    "Sec-WebSocket-Version: 13\r\n",
    "Sec-WebSocket-Version: 8\r\n",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "Sec-WebSocket-Key: x\r\n",
    "Sec-WebSocket-Protocol: anabranch.v1\r\n",
    "Sec-WebSocket-Protocol: a, anabranch.noise.v1\r\n",
    "Origin: http://example.org\r\n",
    "Origin: http://localhost:80\r\n",
    "Origin: http://localhost\r\n",
    "Origin: https://[::1]\r\n",
    "Origin: http://127.0.0.1:8080\r\n",
    "Origin: http://evil.example\r\n",
    "Origin: null\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    ": ",
    ",",
    ";",
    "\"",
    "\\",
    "for=",
    "192.0.2.1",
    "[2001:db8::1]:80",
    "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "PROXY UNKNOWN\r\n",
    "\r\n\r\n\0\r\nQUIT\n",
];

/// Consumes the input and returns lines of HTTP requests and of PROXY headers, and other bytes.
pub fn request_text(input: &mut Input<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    while !input.is_empty() {
        let byte = input.u8();
        match LINES.get(usize::from(byte)) {
            Some(line) => text.extend_from_slice(line.as_bytes()),
            // A long line from a short input.
            None if byte == 0xff => text.resize(text.len() + 2000, b'a'),
            None if byte == 0xfe => text.push(input.u8()),
            None => text.push(byte & 0x7f),
        }
    }
    text
}
