//! The frame codec compared with a plain prost codec, and with a copy of the same bytes.

use std::{hint::black_box, time::Duration};

use anabranch::message::{DATA_HEADROOM, DATA_TAILROOM, FrameDecoder, Message, seal_data_frame};
use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;

// Generated as a public module.
#[allow(unreachable_pub)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/anabranch.message.rs"));
}

const SIZES: [usize; 3] = [64, 1024, 16_379];

fn payload(len: usize) -> Bytes {
    (0..len).map(|offset| (offset % 251) as u8).collect()
}

/// A straightforward codec: one allocation for the body, one for the frame around it.
fn prost_encode(payload: &Bytes) -> Vec<u8> {
    let body = generated::Message {
        message: Some(payload.clone()),
        ..Default::default()
    }
    .encode_to_vec();
    let mut buffer = unsigned_varint::encode::usize_buffer();
    let prefix = unsigned_varint::encode::usize(body.len(), &mut buffer);
    let mut frame = Vec::with_capacity(prefix.len() + body.len());
    frame.extend_from_slice(prefix);
    frame.extend_from_slice(&body);
    frame
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for len in SIZES {
        let message = Message::data(payload(len));
        let frame = message.encode();
        group.throughput(Throughput::Bytes(len as u64));

        let mut out = BytesMut::with_capacity(frame.len());
        group.bench_function(BenchmarkId::new("memcpy", len), |b| {
            b.iter(|| {
                out.clear();
                out.extend_from_slice(black_box(&frame));
                black_box(&mut out);
            });
        });
        group.bench_function(BenchmarkId::new("encode_into", len), |b| {
            b.iter(|| {
                out.clear();
                black_box(&message).encode_into(&mut out);
                black_box(&mut out);
            });
        });
        group.bench_function(BenchmarkId::new("encode", len), |b| {
            b.iter(|| black_box(&message).encode());
        });
        group.bench_function(BenchmarkId::new("prost_two_allocations", len), |b| {
            b.iter(|| prost_encode(black_box(&message.payload)));
        });
        let mut buf = vec![0; DATA_HEADROOM + len + DATA_TAILROOM];
        let range = DATA_HEADROOM..DATA_HEADROOM + len;
        group.bench_function(BenchmarkId::new("seal_data_frame", len), |b| {
            b.iter(|| seal_data_frame(black_box(&mut buf), black_box(range.clone()), None));
        });
        group.bench_function(BenchmarkId::new("seal_data_frame_credit", len), |b| {
            b.iter(|| {
                let max_data = black_box(Some(1 << 20));
                seal_data_frame(black_box(&mut buf), black_box(range.clone()), max_data)
            });
        });
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for len in SIZES {
        let frame = Message::data(payload(len)).encode();
        group.throughput(Throughput::Bytes(len as u64));

        let mut decoder = FrameDecoder::new();
        group.bench_function(BenchmarkId::new("whole", len), |b| {
            b.iter(|| {
                decoder.push(black_box(&frame).clone());
                decoder.next_message()
            });
        });
        let half = frame.len() / 2;
        group.bench_function(BenchmarkId::new("cut", len), |b| {
            b.iter(|| {
                decoder.push(black_box(&frame).slice(..half));
                let none = decoder.next_message();
                decoder.push(black_box(&frame).slice(half..));
                (none, decoder.next_message())
            });
        });
        group.bench_function(BenchmarkId::new("prost_slice", len), |b| {
            b.iter(|| generated::Message::decode_length_delimited(black_box(&frame).clone()));
        });
        group.bench_function(BenchmarkId::new("prost_copy", len), |b| {
            b.iter(|| generated::Message::decode_length_delimited(black_box(&frame[..])));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = encode, decode
}
criterion_main!(benches);
