//! What the two sides agree on: protocols, names of files, and the reasons of refusals.

use std::fmt;
use std::io;

use anabranch::Substream;
use anabranch::payload::Rejection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The client sends a payload, whose metadata is the name of the file.
pub(crate) const PUT: &str = "/file-service/put/1.0.0";

/// The client sends the name of a file, and receives the file as a payload.
pub(crate) const GET: &str = "/file-service/get/1.0.0";

/// Bytes of a name. With the suffix of a part it fits what file systems take, which is 255.
const MAX_NAME: usize = 128;

/// The name of a file within a directory. It comes from a peer, and must not lead to another place,
/// nor to a hidden file. Windows has more names that are none, such as those of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileName(String);

impl FileName {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let name = std::str::from_utf8(bytes).map_err(|_| Refusal::BadName)?;
        // The colon names drives and streams on Windows, where a final dot or space is cut off.
        let misleads = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
        let is_name = (1..=MAX_NAME).contains(&name.len())
            && !name.starts_with('.')
            && !name.ends_with(['.', ' '])
            && !name.contains(misleads);
        is_name
            .then(|| Self(name.to_owned()))
            .ok_or(Refusal::BadName)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why the service refuses a transfer: the code of the reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    BadName,
    Exists,
    NotFound,
    Busy,
    Full,
    /// The same peer has begun the same upload again.
    Superseded,
    BadRequest,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::BadName,
        Self::Exists,
        Self::NotFound,
        Self::Busy,
        Self::Full,
        Self::Superseded,
        Self::BadRequest,
    ];

    pub(crate) const fn code(self) -> u32 {
        self as u32 + 1
    }

    /// The reason behind what a payload reports, if it is one of these.
    pub(crate) fn of(rejection: Rejection) -> Option<Self> {
        let Rejection::Code(code) = rejection else {
            return None;
        };
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_temporary(self) -> bool {
        matches!(self, Self::Busy | Self::Full)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadName => "the name is not allowed",
            Self::Exists => "there is such a file, which is not overwritten",
            Self::NotFound => "there is no such file",
            Self::Busy => "too many transfers are under way",
            Self::Full => "there is no room for another file",
            Self::Superseded => "the same upload has begun again",
            Self::BadRequest => "the request is invalid",
        })
    }
}

impl std::error::Error for Refusal {}

/// Asks for a file: the length of its name in one byte, and the name.
pub(crate) async fn write_request(substream: &mut Substream, name: &FileName) -> io::Result<()> {
    let name = name.as_str().as_bytes();
    let len = u8::try_from(name.len()).map_err(io::Error::other)?;
    substream.write_all(&[&[len], name].concat()).await
}

/// Reads what [`write_request`] has sent, and nothing beyond it.
pub(crate) async fn read_request(substream: &mut Substream) -> io::Result<Vec<u8>> {
    let len = substream.read_u8().await?;
    let mut name = vec![0; len.into()];
    substream.read_exact(&mut name).await?;
    Ok(name)
}
