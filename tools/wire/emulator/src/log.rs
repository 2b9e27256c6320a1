//! The log: 16 bytes for each packet, little endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | nanoseconds since the start: arrival, or when the packet was lost |
//! | 4 | microseconds in the queue |
//! | 2 | length |
//! | 1 | number of the flow |
//! | 1 | bits 0 to 2: fate; 3: CE was set here; 4: second direction; 5 and 6: ECN field as sent |

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use crate::direction::Record;

/// Small, so that no write takes long.
const BUFFER: usize = 32 << 10;

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    file: BufWriter<File>,
}

impl Log {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER, File::create(path)?);
        Ok(Self { file })
    }

    pub(crate) fn write(&mut self, record: &Record, is_second: bool) -> io::Result<()> {
        self.file.write_all(&encode(record, is_second))
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn encode(record: &Record, is_second: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    let time = u64::try_from(record.time.as_nanos()).unwrap_or(u64::MAX);
    let waited = u32::try_from(record.waited.as_micros()).unwrap_or(u32::MAX);
    let len = u16::try_from(record.len).unwrap_or(u16::MAX);
    bytes[..8].copy_from_slice(&time.to_le_bytes());
    bytes[8..12].copy_from_slice(&waited.to_le_bytes());
    bytes[12..14].copy_from_slice(&len.to_le_bytes());
    bytes[14] = record.flow;
    let marked = u8::from(record.marked) << 3;
    bytes[15] = record.fate as u8 | marked | u8::from(is_second) << 4 | record.sent_ecn << 5;
    bytes
}

/// How late packets were delivered.
#[derive(Debug)]
pub(crate) struct Lateness {
    /// By microseconds; the last entry counts all that were later.
    counts: Vec<u64>,
    max: Duration,
}

impl Lateness {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; 20_001],
            max: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, late: Duration) {
        let last = self.counts.len() - 1;
        let at = usize::try_from(late.as_micros()).map_or(last, |late| late.min(last));
        self.counts[at] += 1;
        self.max = self.max.max(late);
    }

    /// Microseconds that this share of the packets did not exceed.
    pub(crate) fn percentile(&self, share: f64) -> usize {
        let all: u64 = self.counts.iter().sum();
        let mut rest = (all as f64 * share) as u64;
        let found = self
            .counts
            .iter()
            .position(|count| match rest.checked_sub(*count) {
                Some(less) => {
                    rest = less;
                    false
                }
                None => true,
            });
        found.unwrap_or_default()
    }

    pub(crate) fn max(&self) -> u128 {
        self.max.as_micros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direction::Fate;

    #[test]
    fn a_record_has_16_bytes() {
        let record = Record {
            time: Duration::from_nanos(0x0102_0304),
            waited: Duration::from_micros(0x0506),
            len: 1500,
            flow: 7,
            fate: Fate::DroppedByCoDel,
            marked: true,
            sent_ecn: 0b10,
        };
        let expected = [4, 3, 2, 1, 0, 0, 0, 0, 6, 5, 0, 0, 0xdc, 5, 7, 0b101_1011];
        assert_eq!(encode(&record, true), expected);
    }

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let mut lateness = Lateness::new();
        assert_eq!(lateness.percentile(0.5), 0);
        for late in 0..100 {
            lateness.add(Duration::from_micros(late));
        }
        assert_eq!(lateness.percentile(0.5), 50);
        assert_eq!(lateness.percentile(0.99), 99);
        lateness.add(Duration::from_secs(1));
        assert_eq!(lateness.max(), 1_000_000);
    }
}
