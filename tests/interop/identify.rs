//! The message of `/ipfs/id/1.0.0`, with the fields that js-libp2p and these tests use.
#![allow(dead_code)] // Each suite uses a part of it.

use anabranch::PublicKey;

pub(crate) const AGENT: &str = concat!("anabranch/", env!("CARGO_PKG_VERSION"));

/// Field numbers of the Identify message in the libp2p identify specification.
const PUBLIC_KEY: u8 = 1;
const PROTOCOLS: u8 = 3;
const PROTOCOL_VERSION: u8 = 5;
const AGENT_VERSION: u8 = 6;

/// The length-prefixed message.
pub(crate) fn encode(own: &PublicKey, protocols: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut field = |number: u8, value: &[u8]| {
        body.push(number << 3 | 2);
        put_varint(&mut body, value.len());
        body.extend_from_slice(value);
    };
    field(PUBLIC_KEY, &own.to_protobuf());
    for protocol in protocols {
        field(PROTOCOLS, protocol.as_bytes());
    }
    field(PROTOCOL_VERSION, b"ipfs/0.1.0");
    field(AGENT_VERSION, AGENT.as_bytes());
    let mut message = Vec::new();
    put_varint(&mut message, body.len());
    message.extend(body);
    message
}

/// The protocols and the agent of a received message.
pub(crate) struct Identify {
    pub(crate) protocols: Vec<String>,
    pub(crate) agent: String,
}

pub(crate) fn decode(message: &[u8]) -> Identify {
    let mut rest = message;
    let length = take_varint(&mut rest);
    assert_eq!(length, rest.len(), "one whole message");
    let mut identify = Identify {
        protocols: Vec::new(),
        agent: String::new(),
    };
    while let [key, behind @ ..] = rest {
        rest = behind;
        assert_eq!(key & 7, 2, "every field of Identify has a length");
        let length = take_varint(&mut rest);
        let (value, behind) = rest.split_at(length);
        rest = behind;
        match key >> 3 {
            PROTOCOLS => identify
                .protocols
                .push(String::from_utf8(value.to_vec()).expect("text")),
            AGENT_VERSION => identify.agent = String::from_utf8(value.to_vec()).expect("text"),
            _ => {}
        }
    }
    identify
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> usize {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a varint");
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}
