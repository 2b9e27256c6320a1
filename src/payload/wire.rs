//! The messages around the bytes of a payload (`proto/payload.proto`), each length-prefixed.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::payload::{MessageError, ReadError};
use crate::substream::ReadHalf;

mod generated {
    #![allow(missing_docs, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/anabranch.payload.rs"));
}

pub(super) use generated::{Hash, Header, Receipt, Resume, Start};

/// Maximum length of the metadata in a header, in bytes.
pub(super) const MAX_METADATA: usize = 4096;

/// Maximum length of a message without metadata, in bytes: its fields, and room for those of later
/// versions.
pub(super) const MAX_FIELDS: usize = 256;

/// Length of a hash in bytes.
pub(super) const HASH_LEN: usize = 32;

/// Encodes a message with its length prefix.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(10 + length);
    let mut prefix = unsigned_varint::encode::u64_buffer();
    out.put_slice(unsigned_varint::encode::u64(length as u64, &mut prefix));
    // Can not fail: a `BytesMut` grows.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// Reads one message of at most `max` bytes, and not a byte more.
pub(super) async fn read<M: Message + Default>(
    read: &mut ReadHalf,
    max: usize,
) -> Result<M, ReadError> {
    let mut prefix = [0; 10];
    let mut filled = 0;
    let length = loop {
        let byte = exactly(read, 1).await?;
        let (Some(place), Some(byte)) = (prefix.get_mut(filled), byte.first()) else {
            return Err(ReadError::Bad(MessageError::Length));
        };
        // The tenth byte holds only the 64th bit.
        if filled == 9 && *byte > 1 {
            return Err(ReadError::Bad(MessageError::Length));
        }
        *place = *byte;
        filled += 1;
        if *byte & 0x80 == 0 {
            match unsigned_varint::decode::u64(prefix.get(..filled).unwrap_or_default()) {
                Ok((length, _)) => break length,
                Err(_) => return Err(ReadError::Bad(MessageError::Length)),
            }
        }
    };
    // Checked before a byte of the message is buffered.
    let length = match usize::try_from(length) {
        Ok(length) if length <= max => length,
        _ => return Err(ReadError::Bad(MessageError::TooLong { len: length, max })),
    };
    let body = exactly(read, length).await?;
    M::decode(body).map_err(|error| ReadError::Bad(MessageError::Protobuf(error.to_string())))
}

/// Reads exactly `length` bytes, which the caller has limited.
pub(super) async fn exactly(read: &mut ReadHalf, length: usize) -> Result<Bytes, ReadError> {
    let mut all = BytesMut::new();
    while all.len() < length {
        let missing = length - all.len();
        match read.read_chunk(missing).await.map_err(ReadError::Io)? {
            Some(chunk) if all.is_empty() && chunk.len() == length => return Ok(chunk),
            Some(chunk) => all.extend_from_slice(&chunk),
            None => return Err(ReadError::End),
        }
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Bytes {
        let pairs = (0..hex.len()).step_by(2);
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        pairs.map(byte).collect()
    }

    /// Row F-18: later versions encode these messages in the same bytes, and so do the other
    /// implementations that read this file.
    #[test]
    fn f18_messages_have_the_bytes_that_were_released() {
        let file = include_str!("../../proto/payloads.txt");
        let is_case = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let mut cases = 0;
        for line in file.lines().filter(is_case) {
            let (message, encoded) = line.split_once(" = ").expect("a message and its bytes");
            let mut words = message.split(' ');
            let name = words.next().expect("a name");
            let fields: Vec<_> = words.filter_map(|word| word.split_once('=')).collect();
            let text = |name| {
                fields
                    .iter()
                    .find(|field| field.0 == name)
                    .map(|field| field.1)
            };
            let number = |name| text(name).map(|text| text.parse().expect("a number"));
            let message = match name {
                "header" => encode(&Header {
                    total_len: number("total_len"),
                    metadata: text("metadata").map(bytes),
                    hash: number("hash").map(|hash| hash as i32),
                    resumable: number("resumable").map(|value| value != 0),
                }),
                "resume" => encode(&Resume {
                    have: number("have"),
                    prefix_hash: text("prefix_hash").map(bytes),
                }),
                "start" => encode(&Start {
                    offset: number("offset"),
                }),
                "receipt" => encode(&Receipt {
                    received: number("received"),
                }),
                other => panic!("no message {other}"),
            };
            assert_eq!(hex(&message), encoded, "{line}");
            cases += 1;
        }
        assert_eq!(cases, 7);
    }

    /// Row FR-1: fields of a later version are skipped, and the header of an earlier one is valid.
    #[test]
    fn fr1_unknown_fields_are_skipped_and_missing_ones_are_fine() {
        let mut later = vec![0x08, 5];
        later.extend_from_slice(&[0x98, 0x06, 1]); // field 99, a varint
        later.extend_from_slice(&[0xa2, 0x06, 3, 1, 2, 3]); // field 100, bytes
        later.extend_from_slice(&[0x12, 1, b'm']);
        let header = Header::decode(&later[..]).expect("unknown fields are skipped");
        assert_eq!(header.total_len, Some(5));
        assert_eq!(header.metadata.as_deref(), Some(&b"m"[..]));
        assert_eq!(Header::decode(&[][..]), Ok(Header::default()));
    }

    /// Row FR-1, in reverse: an implementation with only the first two fields can read a header,
    /// and its own header is valid.
    #[test]
    fn fr1_a_header_is_read_by_who_knows_its_first_fields_only() {
        #[derive(Clone, PartialEq, Message)]
        struct OldHeader {
            #[prost(uint64, optional, tag = "1")]
            total_len: Option<u64>,
            #[prost(bytes = "bytes", optional, tag = "2")]
            metadata: Option<Bytes>,
        }
        let header = Header {
            total_len: Some(1 << 40),
            metadata: Some(Bytes::from_static(b"name")),
            hash: Some(Hash::Sha256.into()),
            resumable: Some(true),
        };
        let old = OldHeader::decode_length_delimited(encode(&header)).expect("protobuf");
        assert_eq!(old.total_len, Some(1 << 40));
        assert_eq!(old.metadata.as_deref(), Some(&b"name"[..]));
        let read = Header::decode_length_delimited(&old.encode_length_delimited_to_vec()[..]);
        let read = read.expect("protobuf");
        assert_eq!(
            (read.total_len, read.hash, read.resumable),
            (Some(1 << 40), None, None)
        );
    }
}
