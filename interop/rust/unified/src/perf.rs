//! The protocol `/perf/1.0.0` of libp2p's specifications, as requests and responses: a request is
//! the number of bytes to download as 8 bytes in big-endian order, what is uploaded, and FIN; the
//! response is what is downloaded, and FIN.

use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::{self, ProtocolSupport};

use crate::Stack;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/perf/1.0.0");

/// Written and read at once.
const BLOCK: usize = 64 << 10;

/// libp2p-webrtc makes one message of what waits for a flush, and can not read one above 8 192
/// bytes: two of it fail with `Short buffer` otherwise.
const READABLE: usize = 4 << 10;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What a dialler asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Bytes from the dialler to the listener.
    pub upload: u64,
    /// Bytes from the listener to the dialler.
    pub download: u64,
}

/// What a listener sends, and what a dialler has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Bytes from the listener to the dialler.
    pub download: u64,
}

/// The behaviour of both sides over this stack. A request that takes longer than `timeout` has
/// failed.
#[must_use]
pub fn behaviour(stack: Stack, timeout: Duration) -> request_response::Behaviour<Codec> {
    let flush_after = match stack {
        Stack::Libp2pWebrtc => Some(READABLE),
        _ => None,
    };
    let config = request_response::Config::default().with_request_timeout(timeout);
    let protocols = [(PROTOCOL, ProtocolSupport::Full)];
    request_response::Behaviour::with_codec(Codec { flush_after }, protocols, config)
}

/// The two messages as bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Codec {
    flush_after: Option<usize>,
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Response;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut download = [0; 8];
        io.read_exact(&mut download).await?;
        Ok(Request {
            download: u64::from_be_bytes(download),
            upload: drain(io).await?,
        })
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        let download = drain(io).await?;
        Ok(Response { download })
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Request,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&request.download.to_be_bytes()).await?;
        self.fill(io, request.upload).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Response,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.fill(io, response.download).await
    }
}

/// Reads up to FIN and returns the number of bytes.
async fn drain(io: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match io.read(&mut block).await? {
            0 => return Ok(total),
            read => total += read as u64,
        }
    }
}

impl Codec {
    /// Writes so many bytes. FIN is left to the behaviour.
    async fn fill(self, io: &mut (impl AsyncWrite + Unpin), count: u64) -> io::Result<()> {
        let most = self.flush_after.unwrap_or(BLOCK);
        let mut left = count;
        while left > 0 {
            let block = &ZEROS[..usize::try_from(left).unwrap_or(most).min(most)];
            io.write_all(block).await?;
            left -= block.len() as u64;
            if self.flush_after.is_some() {
                io.flush().await?;
            }
        }
        io.flush().await
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;
    use libp2p::request_response::Codec as _;

    use super::*;

    #[test]
    fn a_request_is_the_download_in_big_endian_order_and_the_upload() {
        let request = Request {
            upload: 3,
            download: 0x0102,
        };
        let mut bytes = Vec::new();
        block_on(Codec::default().write_request(&PROTOCOL, &mut bytes, request)).expect("room");
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0]);
        let read = block_on(Codec::default().read_request(&PROTOCOL, &mut Cursor::new(bytes)));
        assert_eq!(read.expect("a request"), request);
    }

    #[test]
    fn counts_are_exact_below_at_and_above_a_block() {
        for download in [0, 1, BLOCK as u64 - 1, BLOCK as u64, 3 * BLOCK as u64 + 1] {
            let response = Response { download };
            let mut bytes = Vec::new();
            block_on(Codec::default().write_response(&PROTOCOL, &mut bytes, response))
                .expect("room");
            assert_eq!(bytes.len() as u64, download);
            let read = block_on(Codec::default().read_response(&PROTOCOL, &mut Cursor::new(bytes)));
            assert_eq!(read.expect("a response"), response);
        }
    }

    #[test]
    fn a_request_that_ends_within_its_header_is_an_error() {
        let read = block_on(Codec::default().read_request(&PROTOCOL, &mut Cursor::new(vec![0; 7])));
        assert_eq!(
            read.expect_err("7 bytes").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
