//! The substream of a payload.

use crate::error::payload::code;
use crate::substream::{ReadHalf, Substream, WriteHalf};

/// Resets the substream when it is dropped before [`Lease::release`]: a FIN would look like the end
/// of the payload.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) read: ReadHalf,
    pub(super) write: WriteHalf,
    released: bool,
}

impl Lease {
    pub(super) fn new(substream: Substream) -> Self {
        let (read, write) = substream.into_split();
        Self {
            read,
            write,
            released: false,
        }
    }

    /// The payload is complete: on drop the rest is delivered, with FIN.
    pub(super) fn release(&mut self) {
        self.released = true;
    }

    pub(super) fn reset(&mut self, code: u32) {
        self.write.reset(code);
        self.released = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.released {
            self.write.reset(code::CANCELLED);
        }
    }
}
