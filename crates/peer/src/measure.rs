//! Percentiles, memory and processor time.

use std::time::Duration;

use crate::json::Object;

/// Measured durations.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub(crate) fn max(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    /// The smallest sample that `percent` of all samples do not exceed; zero without samples.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or_default()
    }
}

/// Resident memory in KiB of this process and, if its id is known, of the peer's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) own: Option<u64>,
    pub(crate) peer: Option<u64>,
}

impl Memory {
    /// Reads both now.
    pub(crate) fn now(peer_pid: Option<u32>) -> Self {
        Self {
            own: resident("self"),
            peer: peer_pid.and_then(|pid| resident(&pid.to_string())),
        }
    }

    /// The maximum of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            own: self.own.max(other.own),
            peer: self.peer.max(other.peer),
        }
    }
}

/// Growth from `before` to `after` for each of `count` items.
pub(crate) fn growth(before: Option<u64>, after: Option<u64>, count: usize) -> Option<f64> {
    Some((after? as f64 - before? as f64) / count as f64)
}

/// Processor time in seconds, user and system, of all threads of this process and, if its id is
/// known, of the peer's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    own: Option<f64>,
    peer: Option<f64>,
}

impl Cpu {
    /// Processor time up to now.
    pub(crate) fn now(peer_pid: Option<u32>) -> Self {
        Self {
            own: processor_time("self"),
            peer: peer_pid.and_then(|pid| processor_time(&pid.to_string())),
        }
    }

    /// Processor time since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        let less = |now: Option<f64>, then: Option<f64>| Some(now? - then?);
        Self {
            own: less(self.own, earlier.own),
            peer: less(self.peer, earlier.peer),
        }
    }

    pub(crate) fn report(self, line: Object) -> Object {
        line.maybe("cpu_s", self.own).maybe("peer_cpu_s", self.peer)
    }

    /// Adds the processor time of an idle period.
    pub(crate) fn report_hold(self, line: Object) -> Object {
        line.maybe("hold_cpu_s", self.own)
            .maybe("peer_hold_cpu_s", self.peer)
    }
}

/// `VmRSS` of a process, where there is a `/proc`.
fn resident(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// `utime` and `stime` of a process (proc(5)), where there is a `/proc`: fields 14 and 15, in ticks
/// of 10 ms on every Linux. The second field, a name in parentheses, may contain spaces.
fn processor_time(process: &str) -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), Duration::ZERO);
        for ms in (1..=100).rev() {
            samples.push(Duration::from_millis(ms));
        }
        assert_eq!(samples.percentile(50), Duration::from_millis(50));
        assert_eq!(samples.percentile(95), Duration::from_millis(95));
        assert_eq!(samples.percentile(100), samples.max());
    }

    #[test]
    fn processor_time_grows_with_work() {
        let start = Cpu::now(Some(std::process::id()));
        let Some(before) = start.own else {
            // No `/proc` here.
            return;
        };
        while processor_time("self").is_some_and(|now| now < before + 0.05) {
            std::hint::black_box((0..1000).sum::<u64>());
        }
        let used = Cpu::now(Some(std::process::id())).since(start);
        assert!(used.own >= Some(0.05), "{used:?}");
        assert!(used.peer >= Some(0.05), "{used:?}");
    }
}
