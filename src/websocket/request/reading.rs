//! Reads the head of a request, within limits.

use std::io;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::websocket::error::UpgradeError;

/// Maximum length of a head in bytes, cookies included.
pub(crate) const MAX_HEAD: usize = 8 * 1024;

/// Size of the first read; the buffer grows when it is full.
const FIRST_READ: usize = 1024;

/// The part of the HTTP/2 preface (RFC 9113 section 3.4) that looks like a request.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// A partly received head.
#[derive(Debug, Default)]
pub(crate) struct HeadBuffer {
    bytes: Vec<u8>,
    /// Number of parsed bytes.
    seen: usize,
    /// Start of the request line, after empty lines (RFC 9112 section 2.2).
    start: usize,
}

impl HeadBuffer {
    /// Parses new bytes. Returns the head when it is complete, and an error as soon as it is
    /// invalid.
    ///
    /// # Errors
    /// [`UpgradeError::HeadTooLong`], and [`UpgradeError::Malformed`] for bytes after the head, for
    /// NUL, and for a bare CR or LF: implementations disagree whether these end a line, which
    /// allows request smuggling past a proxy.
    pub(crate) fn look(&mut self) -> Result<Option<&[u8]>, UpgradeError> {
        let malformed = |text: &str| Err(UpgradeError::Malformed(text.to_owned()));
        while let Some(byte) = self.bytes.get(self.seen) {
            let before = self.seen.checked_sub(1).and_then(|at| self.bytes.get(at));
            let is_after_cr = before == Some(&b'\r');
            match *byte {
                b'\n' if !is_after_cr => return malformed("LF without CR"),
                _ if is_after_cr && *byte != b'\n' => return malformed("CR without LF"),
                0 => return malformed("NUL"),
                b'\r' | b'\n' => {}
                // Not a method: TLS for example, whose client waits for an answer.
                byte if self.seen == self.start && !byte.is_ascii_alphabetic() => {
                    return malformed("no request line");
                }
                _ => {}
            }
            self.seen += 1;
            if *byte != b'\n' {
                continue;
            }
            if self.seen == self.start + 2 {
                self.start = self.seen;
            } else if self
                .bytes
                .get(..self.seen)
                .is_some_and(|head| head.ends_with(b"\r\n\r\n"))
            {
                if self.seen > MAX_HEAD {
                    break;
                }
                if self.bytes.get(self.start..self.seen) == Some(PREFACE) {
                    return Err(UpgradeError::UnsupportedHttp);
                }
                if self.seen < self.bytes.len() {
                    return malformed("bytes after the request");
                }
                return Ok(self.bytes.get(self.start..));
            }
        }
        if self.bytes.len() >= MAX_HEAD {
            return Err(UpgradeError::HeadTooLong);
        }
        Ok(None)
    }

    /// The head that `bytes` consist of.
    pub(crate) fn head_of(bytes: &[u8]) -> Result<&[u8], UpgradeError> {
        let mut buffer = Self {
            bytes: bytes.to_vec(),
            ..Self::default()
        };
        let length = match buffer.look()? {
            Some(head) => head.len(),
            None => return Err(UpgradeError::Malformed("incomplete head".to_owned())),
        };
        Ok(bytes.get(bytes.len() - length..).unwrap_or_default())
    }

    /// Adds received bytes, as many as [`Self::read`] would read.
    #[cfg(test)]
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = MAX_HEAD.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
    }

    /// Whether the method is HEAD, whose answer has no body.
    pub(crate) fn is_of_head(&self) -> bool {
        self.bytes
            .get(self.start..)
            .is_some_and(|head| head.starts_with(b"HEAD "))
    }

    /// Whether nothing has been received.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads until the head is complete.
    ///
    /// # Errors
    /// Those of the stream; within, those of [`Self::look`].
    pub(crate) async fn read<S>(&mut self, stream: &mut S) -> io::Result<Result<(), UpgradeError>>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            match self.look() {
                Ok(Some(_)) => return Ok(Ok(())),
                Ok(None) => {}
                Err(error) => return Ok(Err(error)),
            }
            if self.bytes.len() == self.bytes.capacity() {
                self.bytes.reserve_exact(self.bytes.len().max(FIRST_READ));
            }
            let room = self.bytes.capacity().min(MAX_HEAD) - self.bytes.len();
            let mut limited = (&mut self.bytes).limit(room);
            if stream.read_buf(&mut limited).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The whole head.
    pub(crate) fn head(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(bytes: &[u8]) -> Result<Option<Vec<u8>>, UpgradeError> {
        let mut buffer = HeadBuffer::default();
        buffer.push(bytes);
        let whole = buffer.look().map(|head| head.map(<[u8]>::to_vec));
        // The same byte by byte, except for bytes after the head, which have not arrived yet.
        let mut buffer = HeadBuffer::default();
        for byte in bytes {
            buffer.push(&[*byte]);
            match buffer.look() {
                Ok(None) => {}
                Ok(Some(head)) => {
                    if let Ok(Some(whole)) = &whole {
                        assert_eq!(head, whole);
                    }
                    return whole;
                }
                error => {
                    assert_eq!(error.map(|_| None), whole);
                    return whole;
                }
            }
        }
        assert_eq!(whole, Ok(None));
        whole
    }

    #[test]
    fn a_head_ends_with_its_empty_line() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(look(head), Ok(Some(head.to_vec())));
        let behind_empty_lines = [b"\r\n\r\n", &head[..]].concat();
        assert_eq!(look(&behind_empty_lines), Ok(Some(head.to_vec())));
        assert_eq!(look(&head[..head.len() - 1]), Ok(None));
        assert_eq!(look(b""), Ok(None));
        for bad in [
            &b"GET / HTTP/1.1\nHost: a\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
            b"\nGET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b" GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET",
        ] {
            let error = look(bad).unwrap_err();
            assert!(matches!(error, UpgradeError::Malformed(_)), "{error}");
        }
    }

    /// Found by the fuzzer: NUL after 8 KiB that are no head.
    #[test]
    fn nul_behind_8_kib_is_not_reached() {
        let mut bytes = b"GET / HTTP/1.1\r\nX: ".to_vec();
        bytes.resize(MAX_HEAD, b'a');
        bytes.push(0);
        assert_eq!(look(&bytes), Err(UpgradeError::HeadTooLong));
    }

    #[test]
    fn a_parsed_head_is_held_to_the_same_rules() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(HeadBuffer::head_of(head), Ok(&head[2..]));
        for bad in [
            &head[..head.len() - 1],
            b"GET / HTTP/1.1\r\nx:a\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        ] {
            let error = HeadBuffer::head_of(bad).unwrap_err();
            assert!(matches!(error, UpgradeError::Malformed(_)), "{error}");
        }
    }

    #[test]
    fn a_head_has_8_kib_at_most() {
        let with = |len: usize| {
            let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
            head.resize(len - 4, b'a');
            head.extend_from_slice(b"\r\n\r\n");
            head
        };
        assert_eq!(look(&with(MAX_HEAD)), Ok(Some(with(MAX_HEAD))));
        assert_eq!(look(&with(MAX_HEAD + 1)), Err(UpgradeError::HeadTooLong));
        let lines = b"\r\n".repeat(MAX_HEAD / 2);
        assert_eq!(look(&lines), Err(UpgradeError::HeadTooLong));
    }
}
