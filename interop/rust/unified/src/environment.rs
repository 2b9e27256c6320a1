//! The variables of the environment that the contract defines, and two of our own.

use std::env;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use anabranch::WebRtcDirectVersion;

use crate::AnyError;

/// The limit of one test in rust-libp2p's application.
const TIMEOUT_S: u64 = 180;

/// A transport, and its implementation where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// webrtc-direct of `anabranch-libp2p`, with the version to dial with.
    Anabranch(WebRtcDirectVersion),
    /// webrtc-direct of `libp2p-webrtc`.
    Libp2pWebrtc,
    /// `libp2p-quic`.
    Quic,
    /// `libp2p-tcp` with Noise and Yamux.
    Tcp,
}

/// What both applications read.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `IS_DIALER`: dials and measures, otherwise listens until it is killed.
    pub is_dialer: bool,
    /// `REDIS_ADDR`, as a URL.
    pub redis: String,
    /// `TEST_KEY`, the prefix of every key in Redis.
    pub test_key: String,
    /// `TRANSPORT`, `SECURE_CHANNEL`, `MUXER`, `WEBRTC_DIRECT_STACK`, `WEBRTC_DIRECT_VERSION`.
    pub stack: Stack,
    /// `LISTENER_IP`, where a listener binds.
    pub listener_ip: IpAddr,
    /// `TEST_TIMEOUT_SECS`: the limit of each step that waits for the other side.
    pub timeout: Duration,
    /// `DEBUG`: events of the swarm on stderr.
    pub debug: bool,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// One that is missing or not understood, and what names no stack.
    pub fn read() -> Result<Self, AnyError> {
        Self::of(&of_process)
    }

    fn of(optional: &impl Fn(&str) -> Option<String>) -> Result<Self, AnyError> {
        let required = |name: &str| optional(name).ok_or_else(|| format!("{name} is not set"));
        Ok(Self {
            is_dialer: parse("IS_DIALER", &required("IS_DIALER")?)?,
            redis: format!("redis://{}", required("REDIS_ADDR")?),
            test_key: required("TEST_KEY")?,
            stack: Stack::of(&required("TRANSPORT")?, optional)?,
            listener_ip: parse_or("LISTENER_IP", optional, Ipv4Addr::UNSPECIFIED.into())?,
            timeout: Duration::from_secs(parse_or("TEST_TIMEOUT_SECS", optional, TIMEOUT_S)?),
            debug: parse_or("DEBUG", optional, false)?,
        })
    }
}

impl Stack {
    fn of(transport: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, AnyError> {
        let of = |name: &str| variable(name).unwrap_or_default();
        match transport {
            "webrtc-direct" => match of("WEBRTC_DIRECT_STACK").as_str() {
                "" | "anabranch" => match of("WEBRTC_DIRECT_VERSION").as_str() {
                    "" | "1" => Ok(Self::Anabranch(WebRtcDirectVersion::V1)),
                    "2" => Ok(Self::Anabranch(WebRtcDirectVersion::V2)),
                    other => Err(format!("no version {other:?} of webrtc-direct").into()),
                },
                "libp2p-webrtc" => Ok(Self::Libp2pWebrtc),
                other => Err(format!("no webrtc-direct of {other:?}").into()),
            },
            // A standalone transport has a secure channel and a muxer of its own.
            "quic-v1" => Ok(Self::Quic),
            "tcp" => match (of("SECURE_CHANNEL").as_str(), of("MUXER").as_str()) {
                ("noise", "yamux") => Ok(Self::Tcp),
                other => Err(format!("TCP has noise and yamux here, not {other:?}").into()),
            },
            other => Err(format!("no transport {other:?}").into()),
        }
    }
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, AnyError>
where
    T::Err: Display,
{
    value
        .parse()
        .map_err(|error| format!("{name}={value}: {error}").into())
}

/// The value of an optional variable.
fn parse_or<T: FromStr>(
    name: &str,
    optional: impl Fn(&str) -> Option<String>,
    default: T,
) -> Result<T, AnyError>
where
    T::Err: Display,
{
    optional(name).map_or(Ok(default), |value| parse(name, &value))
}

/// A variable of this process. The harness writes `null` for what it leaves out.
fn of_process(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| value != "null")
}

/// A number of bytes.
///
/// # Errors
/// It is not a number.
pub fn number(name: &str, default: u64) -> Result<u64, AnyError> {
    parse_or(name, of_process, default)
}

/// A number of iterations.
///
/// # Errors
/// It is not a number above 0: there would be nothing to report.
pub fn count(name: &str, default: NonZeroU32) -> Result<NonZeroU32, AnyError> {
    parse_or(name, of_process, default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(more: &[(&str, &str)]) -> Result<Environment, AnyError> {
        let given = [
            ("IS_DIALER", "true"),
            ("REDIS_ADDR", "transport-redis:6379"),
            ("TEST_KEY", "a5b50d5e"),
            ("TRANSPORT", "webrtc-direct"),
        ];
        Environment::of(&|name: &str| {
            let all = more.iter().chain(&given);
            let found = all.into_iter().find(|(of, _)| *of == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_least_that_the_harness_sets_is_enough() {
        let read = environment(&[]).expect("everything is there");
        assert!(read.is_dialer && !read.debug);
        assert_eq!(read.redis, "redis://transport-redis:6379");
        assert_eq!(read.listener_ip, Ipv4Addr::UNSPECIFIED);
        assert_eq!(read.stack, Stack::Anabranch(WebRtcDirectVersion::V1));
        let read = environment(&[("DEBUG", "true"), ("IS_DIALER", "false")]);
        let read = read.expect("everything is there");
        assert!(!read.is_dialer && read.debug);
    }

    #[test]
    fn a_stack_is_named_by_several_variables() {
        let stack = |more: &[_]| environment(more).map(|read| read.stack).ok();
        let v2 = [("WEBRTC_DIRECT_VERSION", "2")];
        assert_eq!(stack(&v2), Some(Stack::Anabranch(WebRtcDirectVersion::V2)));
        let foreign = [("WEBRTC_DIRECT_STACK", "libp2p-webrtc")];
        assert_eq!(stack(&foreign), Some(Stack::Libp2pWebrtc));
        assert_eq!(stack(&[("TRANSPORT", "quic-v1")]), Some(Stack::Quic));
        let tcp = |secure, muxer| {
            stack(&[
                ("TRANSPORT", "tcp"),
                ("SECURE_CHANNEL", secure),
                ("MUXER", muxer),
            ])
        };
        assert_eq!(tcp("noise", "yamux"), Some(Stack::Tcp));
        assert_eq!(tcp("tls", "yamux"), None);
        assert_eq!(tcp("noise", "mplex"), None);
        assert_eq!(stack(&[("TRANSPORT", "webrtc")]), None);
        assert_eq!(stack(&[("WEBRTC_DIRECT_VERSION", "3")]), None);
        assert_eq!(stack(&[("WEBRTC_DIRECT_STACK", "pion")]), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        for (name, value) in [
            ("IS_DIALER", "yes"),
            ("LISTENER_IP", "everywhere"),
            ("DEBUG", "1"),
            ("TEST_TIMEOUT_SECS", "-1"),
        ] {
            let error = environment(&[(name, value)]).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
