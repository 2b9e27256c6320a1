//! The ICE credentials of webrtc-direct, which carry the version and need no signalling.
//!
//! A listener derives everything from the USERNAME of the first STUN request (`docs/wire.md`
//! section 4, RFC 8445 section 7.2.2: `<server ufrag>:<client ufrag>`):
//!
//! ```text
//!                v1                              v2
//! server ufrag   libp2p+webrtc+v1/<random>  = U  libp2p+webrtc+v2/<client pwd>  = S
//! server pwd     U                               S
//! client ufrag   U                               random
//! client pwd     U                               random
//! ```
//!
//! In both versions the passwords are readable on the wire, and authenticate nobody. Noise does.

use std::fmt;

use rand::RngExt;
use rand::distr::Alphanumeric;
use thiserror::Error;

/// Limits of an ufrag and a pwd, in characters (RFC 8839 section 5.4).
const UFRAG_MIN: usize = 4;
const PWD_MIN: usize = 22;
const MAX: usize = 256;

/// Random characters in an ufrag or pwd: 190 bits. RFC 8445 section 5.3 requires 24 in the ufrag
/// and 128 in the pwd; go and js use 32 characters too.
const RANDOM_LEN: usize = 32;

/// The same of libp2p-webrtc as a dialler, up to 0.10.0-alpha.
const LIBP2P_WEBRTC_RANDOM_LEN: usize = 64;

/// The version of webrtc-direct, which determines how the ICE credentials are derived.
///
/// A listener supports all versions at once. The dialler chooses.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Version {
    /// Both sides use one random ufrag, which is also the password. All deployed listeners support
    /// it.
    ///
    /// It needs SDP munging, which browsers are about to forbid.
    #[default]
    V1,
    /// The ufrag of the server carries the password of the client.
    V2,
}

impl Version {
    const ALL: [Self; 2] = [Self::V1, Self::V2];

    const fn prefix(self) -> &'static str {
        match self {
            Self::V1 => "libp2p+webrtc+v1/",
            Self::V2 => "libp2p+webrtc+v2/",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The credentials of both sides, as a listener derives them from USERNAME.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct ServerCredentials {
    pub(crate) version: Version,
    pub(crate) local_ufrag: String,
    pub(crate) local_pwd: String,
    pub(crate) remote_ufrag: String,
    pub(crate) remote_pwd: String,
}

impl ServerCredentials {
    /// Whether they look like those of libp2p-webrtc, which alone uses 64 random characters. A
    /// heuristic: only for what does not harm other peers.
    pub(crate) fn are_of_libp2p_webrtc(&self) -> bool {
        let random = self.local_ufrag.strip_prefix(Version::V1.prefix());
        random.is_some_and(|random| random.len() == LIBP2P_WEBRTC_RANDOM_LEN)
    }
}

/// Parses the USERNAME of a first STUN request.
///
/// Everything is checked before anything is allocated. The ICE alphabet excludes characters that
/// could do harm in SDP, in logs or as a separator.
pub(crate) fn parse_username(username: &str) -> Result<ServerCredentials, UsernameError> {
    let (server, client) = username
        .split_once(':')
        .ok_or(UsernameError::MissingSeparator)?;
    check(server, UFRAG_MIN, "server ufrag")?;
    check(client, UFRAG_MIN, "client ufrag")?;
    let (version, suffix) = Version::ALL
        .into_iter()
        .find_map(|version| Some((version, server.strip_prefix(version.prefix())?)))
        .ok_or(UsernameError::UnknownVersion)?;
    let client_pwd = match version {
        Version::V1 => {
            if server != client {
                return Err(UsernameError::UnequalHalves);
            }
            server
        }
        Version::V2 => suffix,
    };
    check(server, PWD_MIN, "server pwd")?;
    check(client_pwd, PWD_MIN, "client pwd")?;
    Ok(ServerCredentials {
        version,
        local_ufrag: server.to_owned(),
        local_pwd: server.to_owned(),
        remote_ufrag: client.to_owned(),
        remote_pwd: client_pwd.to_owned(),
    })
}

/// The credentials of both sides, as a dialler generates them.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct ClientCredentials {
    pub(crate) version: Version,
    pub(crate) local_ufrag: String,
    pub(crate) local_pwd: String,
    pub(crate) remote_ufrag: String,
    pub(crate) remote_pwd: String,
}

impl ClientCredentials {
    /// Generates fresh credentials for one connection.
    pub(crate) fn generate(version: Version) -> Self {
        match version {
            Version::V1 => {
                let ufrag = format!("{}{}", version.prefix(), random_ice_chars());
                Self {
                    version,
                    local_ufrag: ufrag.clone(),
                    local_pwd: ufrag.clone(),
                    remote_ufrag: ufrag.clone(),
                    remote_pwd: ufrag,
                }
            }
            Version::V2 => {
                let pwd = random_ice_chars();
                let server = format!("{}{pwd}", version.prefix());
                Self {
                    version,
                    local_ufrag: random_ice_chars(),
                    local_pwd: pwd,
                    remote_ufrag: server.clone(),
                    remote_pwd: server,
                }
            }
        }
    }
}

// Without passwords, and without ufrags, which contain them.
impl fmt::Debug for ServerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCredentials")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Why a USERNAME is not one of webrtc-direct.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub(crate) enum UsernameError {
    #[error("the {0} contains a character outside of A-Z, a-z, 0-9, + and /")]
    InvalidCharacter(&'static str),
    #[error("the {part} has {len} characters, not {min} to 256")]
    Length {
        part: &'static str,
        len: usize,
        min: usize,
    },
    #[error("there is no colon between two ufrags")]
    MissingSeparator,
    #[error("the two halves of a version 1 username are not equal")]
    UnequalHalves,
    #[error("the server ufrag does not begin with a known version")]
    UnknownVersion,
}

fn check(value: &str, min: usize, part: &'static str) -> Result<(), UsernameError> {
    let len = value.len();
    // The length first: it limits the work that an unknown peer can cause.
    if !(min..=MAX).contains(&len) {
        return Err(UsernameError::Length { part, len, min });
    }
    let ice_char = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    if !value.bytes().all(ice_char) {
        return Err(UsernameError::InvalidCharacter(part));
    }
    Ok(())
}

fn random_ice_chars() -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(RANDOM_LEN)
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V1: &str = "libp2p+webrtc+v1/";
    const V2: &str = "libp2p+webrtc+v2/";

    fn length(part: &'static str, len: usize, min: usize) -> UsernameError {
        UsernameError::Length { part, len, min }
    }

    #[test]
    fn libp2p_webrtc_shows_by_the_length_of_its_ufrag() {
        for (prefix, length, expected) in [
            (V1, 64, true),
            (V1, 32, false),
            (V1, 65, false),
            (V2, 64, false),
        ] {
            let ufrag = format!("{prefix}{}", "a".repeat(length));
            let credentials = parse_username(&format!("{ufrag}:{ufrag}")).unwrap();
            assert_eq!(credentials.are_of_libp2p_webrtc(), expected, "{ufrag}");
        }
    }

    #[test]
    fn usernames_that_are_refused() {
        use UsernameError::*;
        let pwd = "p".repeat(22);
        let v1 = format!("{V1}{pwd}");
        let long = "a".repeat(240);
        for (username, error) in [
            (String::new(), MissingSeparator),
            (v1.clone(), MissingSeparator),
            (":".into(), length("server ufrag", 0, 4)),
            (format!(":{v1}"), length("server ufrag", 0, 4)),
            (format!("{v1}:"), length("client ufrag", 0, 4)),
            (format!("{V2}{pwd}:abc"), length("client ufrag", 3, 4)),
            (format!("abc:{v1}"), length("server ufrag", 3, 4)),
            // Halves of 257 characters.
            (
                format!("{V1}{long}:{V1}{long}"),
                length("server ufrag", 257, 4),
            ),
            (format!("{V2}{long}:abcd"), length("server ufrag", 257, 4)),
            (
                format!("{V2}{pwd}:{}", "c".repeat(257)),
                length("client ufrag", 257, 4),
            ),
            // Version 1: the ufrag is the pwd too. Version 2: the suffix is the pwd.
            (format!("{V1}abcd:{V1}abcd"), length("server pwd", 21, 22)),
            (format!("{V2}:abcd"), length("server pwd", 17, 22)),
            (
                format!("{V2}{}:abcd", "p".repeat(21)),
                length("client pwd", 21, 22),
            ),
            // A second colon.
            (format!("{v1}:{v1}:{v1}"), InvalidCharacter("client ufrag")),
            (format!("{v1}::{v1}"), InvalidCharacter("client ufrag")),
            // Characters outside of the ICE alphabet.
            (
                format!("{V2}{pwd}\r\na=x:abcd"),
                InvalidCharacter("server ufrag"),
            ),
            (
                format!("{V2}{pwd}:abcd\r\n"),
                InvalidCharacter("client ufrag"),
            ),
            (format!("{v1}\0:{v1}\0"), InvalidCharacter("server ufrag")),
            (format!("{v1}-_:{v1}-_"), InvalidCharacter("server ufrag")),
            (format!("{V2}{pwd} :abcd"), InvalidCharacter("server ufrag")),
            (
                format!("{V2}{pwd}\u{e9}:abcd"),
                InvalidCharacter("server ufrag"),
            ),
            (
                format!("{V2}{pwd}:\u{1f980}"),
                InvalidCharacter("client ufrag"),
            ),
            // Versions.
            (format!("libp2p+webrtc+v3/{pwd}:abcd"), UnknownVersion),
            (format!("libp2p+webrtc+v1{pwd}:abcd"), UnknownVersion),
            (format!("LIBP2P+WEBRTC+V1/{pwd}:abcd"), UnknownVersion),
            (format!("abcd:{v1}"), UnknownVersion),
            (format!("{v1}:{V1}{}", "q".repeat(22)), UnequalHalves),
            (format!("{v1}:abcd"), UnequalHalves),
        ] {
            assert_eq!(parse_username(&username), Err(error), "{username:?}");
        }
    }

    #[test]
    fn version_1() {
        for random in ["abcde".to_owned(), "a/+Z9".repeat(6), "x".repeat(239)] {
            let ufrag = format!("{V1}{random}");
            let parsed = parse_username(&format!("{ufrag}:{ufrag}")).unwrap();
            let expected = ServerCredentials {
                version: Version::V1,
                local_ufrag: ufrag.clone(),
                local_pwd: ufrag.clone(),
                remote_ufrag: ufrag.clone(),
                remote_pwd: ufrag,
            };
            assert!(parsed == expected);
        }
    }

    #[test]
    fn version_2() {
        for (pwd, client) in [
            ("p".repeat(22), "abcd".to_owned()),
            ("a/+Z9".repeat(6), "/+/+".to_owned()),
            ("p".repeat(239), "c".repeat(256)),
        ] {
            let server = format!("{V2}{pwd}");
            let parsed = parse_username(&format!("{server}:{client}")).unwrap();
            let expected = ServerCredentials {
                version: Version::V2,
                local_ufrag: server.clone(),
                local_pwd: server,
                remote_ufrag: client,
                remote_pwd: pwd,
            };
            assert!(parsed == expected);
        }
    }

    #[test]
    fn a_listener_learns_what_the_dialler_made() {
        for version in Version::ALL {
            let client = ClientCredentials::generate(version);
            let username = format!("{}:{}", client.remote_ufrag, client.local_ufrag);
            let server = parse_username(&username).unwrap();
            assert_eq!(server.version, version);
            assert_eq!(server.local_ufrag, client.remote_ufrag);
            assert_eq!(server.local_pwd, client.remote_pwd);
            assert_eq!(server.remote_ufrag, client.local_ufrag);
            assert_eq!(server.remote_pwd, client.local_pwd);

            let other = ClientCredentials::generate(version);
            assert_ne!(client.local_ufrag, other.local_ufrag);
            assert_ne!(client.remote_ufrag, other.remote_ufrag);
        }
    }

    #[test]
    fn version_2_does_not_reveal_the_pwd_in_the_client_ufrag() {
        let client = ClientCredentials::generate(Version::V2);
        assert_ne!(client.local_ufrag, client.local_pwd);
    }

    #[test]
    fn debug_shows_no_password() {
        let client = ClientCredentials::generate(Version::V1);
        let username = format!("{}:{}", client.remote_ufrag, client.local_ufrag);
        let server = parse_username(&username).unwrap();
        assert_eq!(
            format!("{client:?}"),
            "ClientCredentials { version: V1, .. }"
        );
        assert_eq!(
            format!("{server:?}"),
            "ServerCredentials { version: V1, .. }"
        );
    }

    proptest! {
        #![proptest_config(crate::random::cases(256))]

        #[test]
        fn no_username_panics(
            prefix in "(libp2p\\+webrtc\\+v[123]/)?",
            server in "\\PC{0,300}",
            client in "[\\PC:\r\n]{0,300}",
        ) {
            if let Ok(credentials) = parse_username(&format!("{prefix}{server}:{client}")) {
                for value in [credentials.local_pwd, credentials.remote_pwd] {
                    prop_assert!((22..=256).contains(&value.len()));
                }
                for value in [credentials.local_ufrag, credentials.remote_ufrag] {
                    prop_assert!((4..=256).contains(&value.len()));
                    prop_assert!(!value.contains(['\r', '\n', ':', ' ']));
                }
            }
        }
    }
}
