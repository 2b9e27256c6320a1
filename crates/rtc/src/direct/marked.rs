//! Received ECN codepoints, which count only if DTLS decrypts their datagram: anybody can forge an
//! address, and forged CE marks would slow the peer down.

use std::time::Instant;

use anabranch_sctp::Ecn;

use super::DirectEngine;
use crate::engine::Datagram;
use crate::transmit::TransmitQueue;

/// Datagrams of one codepoint that DTLS has, and the packets that it has decrypted since it had
/// none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marked {
    codepoint: Ecn,
    datagrams: u32,
    opened: u32,
}

impl Marked {
    pub(super) fn on_opened(&mut self) {
        self.opened = self.opened.saturating_add(1);
    }
}

impl DirectEngine {
    /// Handles a record with a codepoint.
    ///
    /// A batch of ECT(0) counts as many datagrams as it decrypts: a forger can only add what the
    /// network has cleared or dropped. Any other codepoint is judged alone.
    pub(super) fn handle_marked_record(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        out: &mut TransmitQueue,
    ) {
        if datagram.ecn == Ecn::Ect0 {
            self.marked.codepoint = Ecn::Ect0;
            self.marked.datagrams += 1;
            self.handle_record(now, datagram.contents);
        } else {
            self.handle_record_alone(now, datagram, out);
        }
    }

    /// Handles a record between two drains of DTLS, so that what comes out came with it.
    pub(super) fn handle_record_alone(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        out: &mut TransmitQueue,
    ) {
        self.drain_dtls(now, out);
        self.marked = Marked {
            codepoint: datagram.ecn,
            datagrams: 1,
            opened: 0,
        };
        self.handle_record(now, datagram.contents);
        self.drain_dtls(now, out);
    }

    /// Counts the datagrams that DTLS has decrypted, once it has nothing left to put out.
    pub(super) fn count_marked(&mut self) {
        let Marked {
            codepoint,
            datagrams,
            opened,
        } = std::mem::take(&mut self.marked);
        (self.channels.sctp).count_ecn(codepoint, datagrams.min(opened));
    }
}
