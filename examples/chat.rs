//! A chat room: each member has one substream of messages. A member that does not read misses
//! messages and is told how many; nobody waits for it.
//!
//! ```text
//! cargo run --example chat -- serve 0.0.0.0:4001 room.key
//! cargo run --example chat -- join ADDRESS NAME
//! ```

use std::time::Duration;

use anabranch::delimited::{MessageReader, MessageWriter};
use anabranch::{Address, Connection, Endpoint, Identity};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::oneshot;
use tokio::time::timeout;

const PROTOCOL: &str = "/chat/1.0.0";
const MAX_MESSAGE: usize = 4 * 1024;
const MAX_NAME: usize = 32;

/// Of what the room says: a name before a message, in which each invalid byte takes three.
const MAX_SAID: usize = MAX_NAME + 2 + 3 * MAX_MESSAGE;

/// Messages that a slow member can be behind.
const BACKLOG: usize = 256;

/// How long a member that leaves may take to read what was said before.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a member is told when its name is refused.
const BAD_NAME: u32 = 1;

const USAGE: &str = "serve SOCKET-ADDRESS KEY-FILE | join ADDRESS NAME";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", socket, key] => serve(socket, key).await,
        ["join", address, name] => join(address.parse()?, name).await,
        _ => Err(USAGE.into()),
    }
}

async fn serve(socket: &str, key: &str) -> Result<(), Error> {
    let endpoint = Endpoint::builder()
        .identity(Identity::load_or_generate(key)?)
        .protocol(PROTOCOL)
        .bind(socket)
        .await?;
    for address in endpoint.addresses() {
        println!("{address}");
    }
    let (room, _) = broadcast::channel(BACKLOG);
    while let Some(incoming) = endpoint.accept().await {
        let room = room.clone();
        tokio::spawn(async move {
            let from = incoming.remote_address();
            let served = async {
                let connection = incoming.await.map_err(Error::from)?;
                member(connection, room).await
            };
            if let Err(error) = served.await {
                eprintln!("{from}: {error}");
            }
        });
    }
    Ok(())
}

/// Serves a member until it leaves. Its first message is its name.
async fn member(connection: Connection, room: broadcast::Sender<Bytes>) -> Result<(), Error> {
    let Some(substream) = connection.accept().await? else {
        return Ok(());
    };
    let (read, write) = substream.into_split();
    let mut reader = MessageReader::new(read, MAX_MESSAGE);
    let writer = MessageWriter::new(write, MAX_SAID);
    let name = reader.read().await?.unwrap_or_default();
    let name = match std::str::from_utf8(&name) {
        Ok(name) if is_name(name) => name.to_owned(),
        _ => {
            writer.half().reset(BAD_NAME);
            return Err("a bad name".into());
        }
    };
    let (leave, left) = oneshot::channel();
    let mut telling = tokio::spawn(tell(room.subscribe(), writer, left));
    let say = |what: String| drop(room.send(what.into()));
    say(format!("* {name} joins"));
    let heard = hear(&mut reader, &name, &room).await;
    say(format!("* {name} leaves"));
    let _ = leave.send(());
    if timeout(FAREWELL, &mut telling).await.is_err() {
        telling.abort();
    }
    heard
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(char::is_alphanumeric)
}

async fn hear(
    reader: &mut MessageReader,
    name: &str,
    room: &broadcast::Sender<Bytes>,
) -> Result<(), Error> {
    while let Some(message) = reader.read().await? {
        let text = String::from_utf8_lossy(&message);
        // Terminals obey control characters.
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let _ = room.send(format!("{name}: {text}").into());
    }
    Ok(())
}

/// Passes what is said in the room to a member, which may be slow, until it has left.
async fn tell(
    mut said: broadcast::Receiver<Bytes>,
    mut writer: MessageWriter,
    mut left: oneshot::Receiver<()>,
) {
    loop {
        let message = tokio::select! {
            // What was said before it left comes first.
            biased;
            message = said.recv() => message,
            _ = &mut left => break,
        };
        let message = match message {
            Ok(message) => message,
            Err(RecvError::Lagged(missed)) => format!("* {missed} messages missed").into(),
            Err(RecvError::Closed) => break,
        };
        if writer.write(message).await.is_err() {
            return;
        }
    }
    let _ = writer.finish().await;
}

async fn join(address: Address, name: &str) -> Result<(), Error> {
    let endpoint = Endpoint::builder().dial_only()?;
    let connection = endpoint.connect(&address).await?;
    let substream = connection.open(PROTOCOL).await?;
    let (read, write) = substream.into_split();
    let mut reader = MessageReader::new(read, MAX_SAID);
    let mut writer = MessageWriter::new(write, MAX_MESSAGE);
    writer
        .write(Bytes::copy_from_slice(name.as_bytes()))
        .await?;
    let showing = async {
        while let Some(message) = reader.read().await? {
            println!("{}", String::from_utf8_lossy(&message));
        }
        Ok::<_, Error>(())
    };
    let saying = async {
        let mut lines = BufReader::new(stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            writer.write(line.into()).await?;
        }
        // The room has everything that was said, and ends its side too.
        writer.finish().await?;
        Ok::<_, Error>(())
    };
    tokio::try_join!(showing, saying)?;
    endpoint.close().await;
    Ok(())
}
