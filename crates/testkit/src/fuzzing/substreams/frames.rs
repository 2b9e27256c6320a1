//! Frames of the peer.

use anabranch::carrier::ChannelId;
use anabranch::message::{Flag, Message};
use bytes::Bytes;

use super::{Input, Model, Peer, RECEIVE_WINDOW, content};

/// Sends an arbitrary frame of the peer, valid or not.
pub(super) fn send_arbitrary(
    input: &mut Input<'_>,
    choice: u8,
    peer: &mut Peer,
    channel: ChannelId,
    model: &mut Model,
) {
    let mut message = Message::default();
    let mut length = 0;
    match choice {
        15..=20 => {
            length = input.pick(&[1, 100, 5000, 16_000]);
            if choice == 20 {
                message.flag = Some(input.pick(&FLAGS));
            }
        }
        21..=25 => message.flag = Some(input.pick(&FLAGS)),
        26 | 27 => {
            message.max_data = Some(u64::from(input.u32()) >> input.below(32));
            if choice == 27 {
                length = 10;
            }
        }
        28 => {
            // An unknown flag, or nothing at all.
            let unknown = input.u8() | 4;
            let frame = [2, 8, unknown & 0x7f];
            peer.send(channel, input.pick(&[&frame[..], &[0]]));
            return;
        }
        29 => {
            let length = input.below(16);
            if peer.send(channel, input.take(length)) {
                model.garble();
            }
            return;
        }
        30 => {
            model.broken = true;
            return peer.close(channel);
        }
        // An incomplete frame, which never ends or swallows the next frames.
        _ => {
            if peer.send(channel, &[0x80, 0x02, 0x12]) {
                model.garble();
            }
            return;
        }
    }
    if let Some(code) = input.pick(&[None, None, Some(7)]) {
        message.error_code = Some(code);
    }
    send(peer, channel, model, message, length);
}

/// Sends a message of the peer, with `length` bytes of payload.
pub(super) fn send(
    peer: &mut Peer,
    channel: ChannelId,
    model: &mut Model,
    mut message: Message,
    length: usize,
) {
    message.payload = Bytes::from(content(channel.get(), false, model.sent, length));
    if !peer.send(channel, &message.encode()) {
        return;
    }
    model.sent += message.payload.len();
    // Data after FIN is a violation, and data beyond the window may be one. FIN_ACK is valid only
    // after our FIN, which may be in flight.
    model.broken |= model.fin.is_some() && !message.payload.is_empty();
    model.broken |= model.sent > RECEIVE_WINDOW as usize;
    match message.flag {
        Some(Flag::Fin) => model.fin = model.fin.or(Some(model.sent)),
        Some(Flag::FinAck) => model.broken = true,
        Some(Flag::ResetStream) => (model.broken, model.reset_by_peer) = (true, true),
        Some(Flag::StopSending) => model.stopped_by_peer = true,
        None => {}
    }
}

const FLAGS: [Flag; 4] = [
    Flag::Fin,
    Flag::StopSending,
    Flag::ResetStream,
    Flag::FinAck,
];
