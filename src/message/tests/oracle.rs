//! Comparison with prost.

use proptest::{collection::vec, prelude::*};
use prost::Message as _;

use super::super::oracle::{decode_body, generated};
use super::*;

fn to_prost(message: &Message) -> generated::Message {
    generated::Message {
        flag: message.flag.map(|flag| flag as i32),
        message: (!message.payload.is_empty()).then(|| message.payload.clone()),
        error_code: message.error_code,
        max_data: message.max_data,
        stream: message.stream,
        label: message.label.clone(),
        max_substreams: message.max_substreams,
        reason: message.reason.clone(),
        draining: message.draining.then_some(true),
        opened: message.opened,
    }
}

fn same_as_prost(body: Vec<u8>) -> Result<(), TestCaseError> {
    let body = Bytes::from(body);
    let expected = decode_body(body.clone());
    prop_assert_eq!(Message::decode_body(body).ok(), expected);
    Ok(())
}

fn varint(value: u64) -> Vec<u8> {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    unsigned_varint::encode::u64(value, &mut buffer).to_vec()
}

/// A varint, sometimes longer than necessary or than allowed.
fn any_varint() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![0..8_u64, 0..300_u64, any::<u64>()];
    (value, prop_oneof![8 => Just(0), 1 => 1..5_usize]).prop_map(|(value, pad)| {
        let mut bytes = varint(value);
        if let (Some(last), 1..) = (bytes.last_mut(), pad) {
            *last |= 0x80;
            bytes.extend(vec![0x80; pad - 1]);
            bytes.push(0);
        }
        bytes
    })
}

/// A field, usually well formed: each number with each wire type.
fn any_field() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        6 => prop::sample::select(vec![1_u64, 2, 3, 1001, 1002, 1003]),
        2 => 4..20_u64,
        1 => 0..(1_u64 << 30),
    ];
    let bytes = prop_oneof![
        3 => vec(any::<u8>(), 0..20),
        3 => "\\PC{0,6}".prop_map(String::into_bytes),
    ];
    let delimited = (bytes, prop_oneof![9 => Just(0), 1 => any::<u64>()])
        .prop_map(|(b, wrong)| [varint((b.len() as u64).wrapping_add(wrong)), b].concat());
    let value = prop_oneof![
        any_varint().prop_map(|bytes| (0, bytes)),
        delimited.clone().prop_map(|bytes| (2, bytes)),
        any::<[u8; 8]>().prop_map(|bytes| (1, bytes.to_vec())),
        any::<[u8; 4]>().prop_map(|bytes| (5, bytes.to_vec())),
        prop::sample::select(vec![3, 4, 6, 7]).prop_map(|wire| (wire, Vec::new())),
    ];
    // The wire type of the known numbers, so that most bodies get past the first fields.
    let right = (any_varint(), delimited);
    (number, value, right, prop::bool::weighted(0.7)).prop_map(
        |(number, (wire, value), (uint, delimited), right)| {
            let (wire, value) = match number {
                1 | 3 | 1001 | 1002 if right => (0, uint),
                2 | 1003 if right => (2, delimited),
                _ => (wire, value),
            };
            [varint(number << 3 | wire), value].concat()
        },
    )
}

/// Fields, some of them in groups.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let fields = vec(any_field(), 0..6).prop_map(|fields| fields.concat());
    fields.prop_recursive(4, 32, 3, |inner| {
        (vec(inner, 0..3), 1..6_u64, 0..20_u64).prop_map(|(inner, number, other)| {
            let number = number + 3;
            let end = if other == 0 { number + 1 } else { number };
            [
                varint(number << 3 | 3),
                inner.concat(),
                varint(end << 3 | 4),
            ]
            .concat()
        })
    })
}

#[test]
fn l1_every_kind_encodes_as_prost_does() {
    for message in every_kind() {
        assert_eq!(
            message.encode(),
            to_prost(&message).encode_length_delimited_to_vec()
        );
    }
}

#[test]
fn l24_depth_of_groups_as_in_prost() {
    for depth in 95..105 {
        for inner in [&[][..], &[0x20, 0x00]] {
            let body = [&vec![0x23; depth], inner, &vec![0x24; depth]].concat();
            assert!(same_as_prost(body).is_ok(), "{depth}");
        }
    }
}

proptest! {
    #![proptest_config(crate::random::cases(2048))]

    #[test]
    fn l24_arbitrary_bytes_as_in_prost(body in vec(any::<u8>(), 0..64)) {
        same_as_prost(body)?;
    }

    #[test]
    fn l1_arbitrary_fields_as_in_prost(body in any_body()) {
        same_as_prost(body)?;
    }

    #[test]
    fn l1_cut_fields_as_in_prost(body in any_body(), end in any::<prop::sample::Index>()) {
        let end = end.index(body.len() + 1);
        same_as_prost(body[..end].to_vec())?;
    }

    #[test]
    fn l1_arbitrary_messages_encode_as_in_prost(
        message in any_message(),
    ) {
        prop_assert_eq!(message.encode(), to_prost(&message).encode_length_delimited_to_vec());
    }
}
