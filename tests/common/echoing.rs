//! Both sides of an echo.

use anabranch::{Connection, Finished};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Echoes every substream until the connection ends.
pub(crate) async fn echo_all(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = substream.into_split();
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _ = write.finish().await;
            }
        });
    }
}

/// Sends `content` on a substream for `protocol`, and gets it back.
pub(crate) async fn echo(connection: &Connection, protocol: &str, content: &[u8]) {
    let substream = connection.open(protocol).await.expect("a substream");
    let (mut read, mut write) = substream.into_split();
    let sending = async {
        write.write_all(content).await.expect("a write");
        write.finish().await.expect("intact")
    };
    let mut got = Vec::new();
    let (outcome, received) = tokio::join!(sending, read.read_to_end(&mut got));
    received.expect("an end");
    assert_eq!(outcome, Finished::Acked);
    assert!(got == content, "{} of {} bytes", got.len(), content.len());
}
