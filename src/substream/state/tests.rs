//! Every state and every event, compared with tables that were written independently of the code.

use super::*;

use ChannelState as C;
use ReadState as R;
use SubstreamEvent as E;
use WriteState as W;

const ACKED: W = W::Finished(FinishedAs::Acked);
const DELIVERED: W = W::Finished(FinishedAs::Delivered);
const TIMED_OUT: W = W::Finished(FinishedAs::TimedOut);
const STOPPED: W = W::Finished(FinishedAs::Stopped);
const DISCARDED: W = W::Finished(FinishedAs::Discarded);

pub(super) const WRITE_STATES: [W; 11] = [
    W::Open,
    W::Closing,
    W::CutOff,
    W::Stopped,
    W::FinSent,
    W::FinDelivered,
    ACKED,
    DELIVERED,
    TIMED_OUT,
    STOPPED,
    DISCARDED,
];
pub(super) const READ_STATES: [R; 5] = [
    R::Open,
    R::StopPending,
    R::StopSent,
    R::FinReceived,
    R::FinAcked,
];
pub(super) const CHANNEL_STATES: [C; 6] = [
    C::Open,
    C::ResetPending,
    C::ResetLocally,
    C::ResetByPeer,
    C::Closed,
    C::Lost,
];
pub(super) const EVENTS: [E; 20] = [
    E::Shutdown,
    E::ConnectionClosing,
    E::CutOffDrained,
    E::CutOffByPeer,
    E::Stop,
    E::Reset,
    E::Violation,
    E::Fin,
    E::FinAck,
    E::StopSending,
    E::ResetStream,
    E::ChannelClosed,
    E::FinWritten,
    E::FinDelivered,
    E::NoFinAckExpected,
    E::FinAckWritten,
    E::StopWritten,
    E::ResetWritten,
    E::FinAckTimeout,
    E::CarrierLost,
];
const FLAGS: [E; 4] = [E::Fin, E::StopSending, E::ResetStream, E::FinAck];

const READER: u8 = Effects::WAKE_READER.0;
const WRITERS: u8 = Effects::WAKE_WRITERS.0;
const DROP_SENT: u8 = Effects::DISCARD_SEND.0;
const DROP_READ: u8 = Effects::DISCARD_RECEIVED.0;
const SERVICE: u8 = Effects::SERVICE.0;
const ERROR: u8 = Effects::PROTOCOL_ERROR.0;
const WAKE_ALL: u8 = READER | WRITERS;

/// Write half: every pair with an effect. All others change nothing.
const WRITE_TABLE: [(W, E, W, u8); 19] = [
    (W::Open, E::Shutdown, W::Closing, WRITERS | SERVICE),
    (W::Open, E::ConnectionClosing, W::CutOff, WRITERS | SERVICE),
    (
        W::CutOff,
        E::StopSending,
        W::Stopped,
        WRITERS | DROP_SENT | SERVICE,
    ),
    (W::CutOff, E::FinAck, W::CutOff, ERROR),
    (
        W::Open,
        E::StopSending,
        W::Stopped,
        WRITERS | DROP_SENT | SERVICE,
    ),
    (W::Open, E::FinAck, W::Open, ERROR),
    (
        W::Closing,
        E::StopSending,
        W::Stopped,
        WRITERS | DROP_SENT | SERVICE,
    ),
    (W::Closing, E::FinWritten, W::FinSent, 0),
    (W::Closing, E::FinAck, W::Closing, ERROR),
    (W::Stopped, E::FinWritten, DISCARDED, WRITERS | SERVICE),
    (W::Stopped, E::FinAck, W::Stopped, ERROR),
    (W::FinSent, E::FinAck, ACKED, WRITERS | SERVICE),
    (W::FinSent, E::FinAckTimeout, TIMED_OUT, WRITERS | SERVICE),
    (W::FinSent, E::StopSending, STOPPED, WRITERS | SERVICE),
    (W::FinSent, E::FinDelivered, W::FinDelivered, 0),
    (W::FinDelivered, E::FinAck, ACKED, WRITERS | SERVICE),
    (
        W::FinDelivered,
        E::FinAckTimeout,
        TIMED_OUT,
        WRITERS | SERVICE,
    ),
    (W::FinDelivered, E::StopSending, STOPPED, WRITERS | SERVICE),
    (
        W::FinDelivered,
        E::NoFinAckExpected,
        DELIVERED,
        WRITERS | SERVICE,
    ),
];

/// Read half: every pair with an effect.
const READ_TABLE: [(R, E, R, u8); 8] = [
    (R::Open, E::Fin, R::FinReceived, READER | SERVICE),
    (
        R::Open,
        E::Stop,
        R::StopPending,
        READER | DROP_READ | SERVICE,
    ),
    (R::StopPending, E::Fin, R::FinReceived, READER | SERVICE),
    (R::StopPending, E::StopWritten, R::StopSent, 0),
    (R::StopSent, E::Fin, R::FinReceived, READER | SERVICE),
    (R::FinReceived, E::FinAckWritten, R::FinAcked, SERVICE),
    (R::FinReceived, E::Stop, R::FinReceived, DROP_READ),
    (R::FinAcked, E::Stop, R::FinAcked, DROP_READ),
];

/// Channel: every pair with an effect, with the effects for a read half without FIN.
const CHANNEL_TABLE: [(C, E, C, u8); 11] = [
    (
        C::Open,
        E::Reset,
        C::ResetPending,
        WAKE_ALL | DROP_SENT | DROP_READ | SERVICE,
    ),
    (
        C::Open,
        E::Violation,
        C::ResetPending,
        WAKE_ALL | DROP_SENT | SERVICE,
    ),
    (
        C::Open,
        E::ResetStream,
        C::ResetByPeer,
        WAKE_ALL | DROP_SENT | DROP_READ | SERVICE,
    ),
    (
        C::Open,
        E::CutOffByPeer,
        C::ResetByPeer,
        WAKE_ALL | DROP_SENT | SERVICE,
    ),
    (
        C::Open,
        E::ChannelClosed,
        C::Closed,
        WAKE_ALL | DROP_SENT | SERVICE,
    ),
    (
        C::Open,
        E::CarrierLost,
        C::Lost,
        WAKE_ALL | DROP_SENT | SERVICE,
    ),
    (C::ResetPending, E::ResetWritten, C::ResetLocally, 0),
    (C::ResetPending, E::ResetStream, C::ResetLocally, SERVICE),
    (C::ResetPending, E::CutOffByPeer, C::ResetLocally, SERVICE),
    (C::ResetPending, E::ChannelClosed, C::ResetLocally, SERVICE),
    (C::ResetPending, E::CarrierLost, C::ResetLocally, SERVICE),
];

fn all_states() -> impl Iterator<Item = State> {
    WRITE_STATES.into_iter().flat_map(|write| {
        READ_STATES.into_iter().flat_map(move |read| {
            CHANNEL_STATES.into_iter().map(move |channel| State {
                write,
                read,
                channel,
            })
        })
    })
}

/// The transition according to the tables.
fn expected(state: State, event: SubstreamEvent) -> (State, u8) {
    if event == E::CutOffDrained {
        return match (state.write, state.channel) {
            (W::CutOff, C::Open) => {
                let channel = C::ResetPending;
                (State { channel, ..state }, WAKE_ALL | SERVICE)
            }
            _ => (state, 0),
        };
    }
    let channel_row = CHANNEL_TABLE
        .iter()
        .find(|(from, on, ..)| (*from, *on) == (state.channel, event));
    if let Some((_, _, channel, effects)) = channel_row {
        let mut effects = *effects;
        // Data before a FIN is complete: the peer's RESET_STREAM does not discard it.
        if event == E::ResetStream && matches!(state.read, R::FinReceived | R::FinAcked) {
            effects &= !DROP_READ;
        }
        let channel = *channel;
        // A reset by the application is not the reset of the close.
        let write = match (state.write, state.channel, event) {
            (W::CutOff, C::Open, E::Reset | E::Violation) => W::Closing,
            (write, ..) => write,
        };
        return (
            State {
                write,
                channel,
                ..state
            },
            effects,
        );
    }
    if state.channel != C::Open {
        return (state, if event == E::Stop { DROP_READ } else { 0 });
    }
    for (from, on, write, effects) in WRITE_TABLE {
        if (from, on) == (state.write, event) {
            return (State { write, ..state }, effects);
        }
    }
    for (from, on, read, effects) in READ_TABLE {
        if (from, on) == (state.read, event) {
            return (State { read, ..state }, effects);
        }
    }
    (state, 0)
}

#[test]
fn every_state_and_event_does_what_the_tables_say() {
    for state in all_states() {
        for event in EVENTS {
            let (after, effects) = state.on(event);
            assert_eq!(
                (after, effects.0),
                expected(state, event),
                "{state:?} {event:?}"
            );
        }
    }
}

#[test]
fn every_transition_keeps_the_invariants() {
    for state in all_states() {
        for event in EVENTS {
            let (after, effects) = state.on(event);
            let context = format!("{state:?} {event:?} -> {after:?} {effects:?}");
            if matches!(state.write, W::Finished(_)) {
                assert_eq!(after.write, state.write, "finished never leaves: {context}");
            }
            if matches!(state.read, R::FinAcked) {
                assert_eq!(
                    after.read, state.read,
                    "acknowledged never leaves: {context}"
                );
            }
            if state.channel != C::Open {
                assert_eq!(
                    (after.write, after.read),
                    (state.write, state.read),
                    "{context}"
                );
                assert_ne!(after.channel, C::Open, "{context}");
                if state.channel != C::ResetPending {
                    let effect = match event {
                        E::Stop => Effects::DISCARD_RECEIVED,
                        _ => Effects::NONE,
                    };
                    assert_eq!((after, effects), (state, effect), "terminal: {context}");
                }
            }
            if effects.contains(Effects::PROTOCOL_ERROR) {
                assert_eq!(event, E::FinAck, "{context}");
                assert!(
                    matches!(state.write, W::Open | W::Closing | W::CutOff | W::Stopped),
                    "{context}"
                );
                assert_eq!(after, state, "{context}");
            }
            // FIN is pending in these states only: once it is written there is no way back to them.
            let owes_fin = |write| matches!(write, W::Open | W::Closing | W::CutOff | W::Stopped);
            if !owes_fin(state.write) {
                assert!(!owes_fin(after.write), "FIN a second time: {context}");
            }
            // A stream cut off by the close ends with FIN only if the peer itself has stopped it.
            if state.write == W::CutOff && after.channel == C::Open {
                assert!(
                    matches!(after.write, W::CutOff | W::Stopped),
                    "a part looks like the whole: {context}"
                );
            }
            // A change that is visible to a waiting task wakes it.
            if after.write_permit() != state.write_permit() && after.write != W::FinSent {
                assert!(effects.contains(Effects::WAKE_WRITERS), "{context}");
            }
            if after.read_permit() != state.read_permit() && state.read_permit() == ReadPermit::Wait
            {
                assert!(effects.contains(Effects::WAKE_READER), "{context}");
            }
            let drained = after.write == W::FinSent || event == E::CutOffDrained;
            if state.sends_data() && !after.sends_data() && !drained {
                assert!(effects.contains(Effects::DISCARD_SEND), "{context}");
            }
        }
    }
}

#[test]
fn every_state_permits_writes_and_reads_as_listed() {
    use Ended as End;
    let ends = [
        None,
        Some(End::ResetLocally),
        Some(End::ResetLocally),
        Some(End::ResetByPeer),
        Some(End::Closed),
        Some(End::Lost),
    ];
    for state in all_states() {
        let channel = CHANNEL_STATES.iter().position(|c| *c == state.channel);
        let end = channel.and_then(|index| ends[index]);
        assert_eq!(state.end(), end);
        let write = match (state.write, end) {
            (W::Stopped | STOPPED | DISCARDED, _) => WritePermit::Stopped,
            (ACKED | DELIVERED | TIMED_OUT, _) => WritePermit::ShutDown,
            (_, Some(end)) => WritePermit::Ended(end),
            (W::Open, None) => WritePermit::Allowed,
            (W::CutOff, None) => WritePermit::CutOff,
            (W::Closing | W::FinSent | W::FinDelivered, None) => WritePermit::ShutDown,
        };
        assert_eq!(state.write_permit(), write, "{state:?}");
        let read = match (state.read, end) {
            (_, Some(End::ResetLocally)) if state.write != W::CutOff => {
                ReadPermit::Ended(End::ResetLocally)
            }
            (R::FinReceived | R::FinAcked, _) => ReadPermit::EndOfStream,
            (R::Open | R::StopPending | R::StopSent, Some(end)) => ReadPermit::Ended(end),
            (R::StopPending | R::StopSent, None) => ReadPermit::EndOfStream,
            (R::Open, None) => ReadPermit::Wait,
        };
        assert_eq!(state.read_permit(), read, "{state:?}");
        assert_eq!(
            state.sends_data(),
            end.is_none() && matches!(state.write, W::Open | W::Closing | W::CutOff)
        );
        assert_eq!(
            state.keeps_payload(),
            end.is_none() && state.read == R::Open
        );
        assert_eq!(
            state.is_complete(),
            WRITE_STATES[6..].contains(&state.write) && state.read == R::FinAcked
        );
    }
}

/// Row L-5: 3 & 1 and 3 & 2 are not zero, but FIN_ACK is neither STOP_SENDING nor RESET.
#[test]
fn l5_fin_ack_triggers_no_other_flag() {
    for state in all_states() {
        let (after, effects) = state.on(E::FinAck);
        assert_eq!((after.read, after.channel), (state.read, state.channel));
        assert!(!effects.contains(Effects::DISCARD_SEND));
        assert!(!effects.contains(Effects::DISCARD_RECEIVED));
        assert!(
            after.write == state.write || after.write == ACKED,
            "{state:?} {after:?}"
        );
    }
}

/// Does what the driver does after an event: writes pending frames, and resets after a protocol
/// error.
fn serve(mut state: State, effects: Effects, fins: &mut u32, acks: &mut u32) -> State {
    if effects.contains(Effects::PROTOCOL_ERROR) {
        state = state.on(E::Violation).0;
    }
    if state.channel == C::ResetPending {
        return state.on(E::ResetWritten).0;
    }
    if state.end().is_some() {
        return state;
    }
    if state.read == R::FinReceived {
        *acks += 1;
        state = state.on(E::FinAckWritten).0;
    }
    if state.read == R::StopPending {
        state = state.on(E::StopWritten).0;
    }
    if state.write == W::CutOff {
        state = state.on(E::CutOffDrained).0;
        return state.on(E::ResetWritten).0;
    }
    if matches!(state.write, W::Closing | W::Stopped) {
        *fins += 1;
        state = state.on(E::FinWritten).0;
    }
    state
}

/// Row H-2: every sequence of up to four flags, with a shutdown or a close of the connection at
/// every position or nowhere, and a driver that keeps up or is late.
#[test]
fn h2_flags_in_every_order_end_in_a_sane_state() {
    for length in 0..=4_u32 {
        for sequence in 0..4_usize.pow(length) {
            let flags: Vec<SubstreamEvent> = (0..length)
                .map(|place| FLAGS[sequence / 4_usize.pow(place) % 4])
                .collect();
            for shutdown_at in 0..=flags.len() + 1 {
                for prompt in [true, false] {
                    run_flags(&flags, E::Shutdown, shutdown_at, prompt);
                    run_flags(&flags, E::ConnectionClosing, shutdown_at, prompt);
                }
            }
        }
    }
}

fn run_flags(flags: &[SubstreamEvent], end: SubstreamEvent, shutdown_at: usize, prompt: bool) {
    let context = format!("{flags:?}, {end:?} at {shutdown_at}, prompt {prompt}");
    let (mut fins, mut acks) = (0, 0);
    let mut state = State::INITIAL;
    let mut fin_was_acked = false;
    let mut early_ack = false;
    let mut events = flags.to_vec();
    if shutdown_at <= flags.len() {
        events.insert(shutdown_at, end);
    }
    for event in events {
        let open = state.end().is_none();
        early_ack |= open
            && event == E::FinAck
            && matches!(state.write, W::Open | W::Closing | W::CutOff | W::Stopped);
        let (after, effects) = state.on(event);
        fin_was_acked |= after.write == ACKED;
        state = after;
        if prompt || effects.contains(Effects::PROTOCOL_ERROR) {
            state = serve(state, effects, &mut fins, &mut acks);
        }
        if fin_was_acked {
            assert_eq!(state.write, ACKED, "{context}");
        }
    }
    state = serve(state, Effects::NONE, &mut fins, &mut acks);
    assert!(fins <= 1, "{fins} FINs: {context}");
    assert!(acks <= 1, "{acks} FIN_ACKs: {context}");
    // Nothing is pending, and a second service adds nothing.
    let (fins_then, acks_then) = (fins, acks);
    assert_eq!(
        serve(state, Effects::NONE, &mut fins, &mut acks),
        state,
        "{context}"
    );
    assert_eq!((fins, acks), (fins_then, acks_then), "{context}");
    let is_stopped = flags.contains(&E::StopSending);
    if end == E::ConnectionClosing && fins > 0 {
        assert!(is_stopped, "a part looks like the whole: {context}");
    }
    let is_cut_off = state.is_cut_off();
    if flags.contains(&E::ResetStream) || early_ack || is_cut_off {
        assert!(state.end().is_some(), "{context}");
    } else {
        assert_eq!(state.end(), None, "{context}");
        assert_eq!(state.read.has_fin(), flags.contains(&E::Fin), "{context}");
        let ends_writing = shutdown_at <= flags.len() || is_stopped;
        assert_eq!(fins, u32::from(ends_writing), "{context}");
    }
}

#[test]
fn every_effect_is_a_bit_of_its_own() {
    let all = [
        Effects::WAKE_READER,
        Effects::WAKE_WRITERS,
        Effects::DISCARD_SEND,
        Effects::DISCARD_RECEIVED,
        Effects::SERVICE,
        Effects::PROTOCOL_ERROR,
    ];
    for (index, one) in all.into_iter().enumerate() {
        assert!(!Effects::NONE.contains(one));
        for (other_index, other) in all.into_iter().enumerate() {
            assert_eq!(one.contains(other), index == other_index);
            let both = one.and(other);
            assert!(both.contains(one) && both.contains(other));
        }
    }
}
