//! The measurements.

use crate::options::{Options, Stack};
use crate::process::{Dialled, dial, number};

/// Concurrent dials for handshakes per second.
const PARALLEL: usize = 8;

/// Idle connections whose memory is measured.
const IDLE_CONNECTIONS: usize = 100;

/// How long connections and substreams are idle.
const HOLD_MS: usize = 2000;

/// The result of one measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// One for each quantity of the metric.
    pub(crate) values: Vec<Option<f64>>,
    pub(crate) failures: Vec<String>,
}

/// One measurement, which yields one row or several.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) quantities: &'static [&'static str],
    pub(crate) measure: fn(&Stack, &Options) -> Outcome,
}

impl Metric {
    /// Whether a larger value of a quantity is better.
    pub(crate) fn more_is_better(&self, quantity: usize) -> bool {
        let unit = self.quantities.get(quantity).copied().unwrap_or_default();
        unit.contains("MB/s") || unit.contains("per second")
    }
}

pub(crate) const METRICS: [Metric; 9] = [
    Metric {
        name: "up, 1 substream",
        quantities: &["1 substream up, MB/s", "CPU seconds per GB, both sides"],
        measure: |stack, options| bulk(stack, options, "up", 1),
    },
    Metric {
        name: "down, 1 substream",
        quantities: &["1 substream down, MB/s", "CPU seconds per GB, both sides"],
        measure: |stack, options| bulk(stack, options, "down", 1),
    },
    Metric {
        name: "up, 10 substreams",
        quantities: &["10 substreams up, MB/s", "CPU seconds per GB, both sides"],
        measure: |stack, options| bulk(stack, options, "up", 10),
    },
    Metric {
        name: "down, 10 substreams",
        quantities: &["10 substreams down, MB/s", "CPU seconds per GB, both sides"],
        measure: |stack, options| bulk(stack, options, "down", 10),
    },
    Metric {
        name: "echo",
        quantities: &[
            "open, echo 1 KiB, close: p50, ms",
            "the same: p95, ms",
            "CPU ms for each, both sides",
        ],
        measure: echo,
    },
    Metric {
        name: "connect",
        quantities: &["connect, one after another: p50, ms", "the same: p95, ms"],
        measure: connect,
    },
    Metric {
        name: "handshakes",
        quantities: &[
            "handshakes per second, 8 at once",
            "CPU ms for each, both sides",
        ],
        measure: handshakes,
    },
    Metric {
        name: "idle connections",
        quantities: &[
            "KiB for each idle connection: listener",
            "the same: dialler",
        ],
        measure: idle_connections,
    },
    Metric {
        name: "idle substreams",
        quantities: &["KiB for each idle substream: listener", "the same: dialler"],
        measure: idle_substreams,
    },
];

/// The arguments of a bulk transfer, and its number of bytes.
pub(crate) fn bulk_args(
    stack: &Stack,
    options: &Options,
    direction: &str,
    streams: u64,
) -> (Vec<String>, f64) {
    let each = options.bytes_for(stack) / streams;
    let args = [
        format!("--{direction}"),
        each.to_string(),
        "--streams".to_owned(),
        streams.to_string(),
    ];
    (args.to_vec(), (each * streams) as f64)
}

fn bulk(stack: &Stack, options: &Options, direction: &str, streams: u64) -> Outcome {
    let (args, bytes) = bulk_args(stack, options, direction, streams);
    let dialled = dial(stack, &args, options.limit);
    let rate = format!("{direction}_MBps");
    outcome(dialled, |line| {
        let cpu = number(line, "cpu_s")? + number(line, "peer_cpu_s")?;
        Some(vec![number(line, &rate), Some(cpu / (bytes / 1e9))])
    })
}

fn echo(stack: &Stack, options: &Options) -> Outcome {
    let count = options.echo;
    let args = strings(&["--echo", "--size", "1k", "--count", &count.to_string()]);
    outcome(dial(stack, &args, options.limit), |line| {
        let cpu = number(line, "cpu_s")? + number(line, "peer_cpu_s")?;
        Some(vec![
            number(line, "p50_ms"),
            number(line, "p95_ms"),
            Some(cpu * 1e3 / count as f64),
        ])
    })
}

/// Each dial is a repeat of its own, so that a failure does not affect the others.
fn connect(stack: &Stack, options: &Options) -> Outcome {
    let count = few(stack, options.dials).to_string();
    let args = strings(&["--echo", "--count", "1", "--repeat", &count]);
    let Dialled { lines, failures } = dial(stack, &args, options.limit);
    let mut times: Vec<f64> = lines
        .iter()
        .filter_map(|line| number(line, "connect_ms"))
        .collect();
    times.sort_by(f64::total_cmp);
    let percentile = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(rank).copied()
    };
    Outcome {
        values: vec![percentile(50), percentile(95)],
        failures,
    }
}

fn handshakes(stack: &Stack, options: &Options) -> Outcome {
    let count = few(stack, options.handshakes);
    let args = conns_args(count, PARALLEL, 0);
    outcome(dial(stack, &args, options.limit), |line| {
        let cpu = number(line, "cpu_s")? + number(line, "peer_cpu_s")?;
        Some(vec![
            Some(count as f64 / number(line, "seconds")?),
            Some(cpu * 1e3 / count as f64),
        ])
    })
}

fn idle_connections(stack: &Stack, options: &Options) -> Outcome {
    let args = conns_args(few(stack, IDLE_CONNECTIONS), 1, HOLD_MS);
    outcome(dial(stack, &args, options.limit), |line| {
        Some(vec![
            number(line, "rss_kib_per_conn"),
            number(line, "own_rss_kib_per_conn"),
        ])
    })
}

fn idle_substreams(stack: &Stack, options: &Options) -> Outcome {
    let count = stack.idle_streams.to_string();
    let hold = HOLD_MS.to_string();
    let args = strings(&["--idle-streams", &count, "--hold-ms", &hold]);
    outcome(dial(stack, &args, options.limit), |line| {
        Some(vec![
            number(line, "rss_kib_per_stream"),
            number(line, "own_rss_kib_per_stream"),
        ])
    })
}

fn conns_args(count: usize, parallel: usize, hold_ms: usize) -> Vec<String> {
    let [count, parallel, hold] = [count, parallel, hold_ms].map(|n| n.to_string());
    strings(&[
        "--conns",
        &count,
        "--parallel",
        &parallel,
        "--hold-ms",
        &hold,
    ])
}

/// A tenth for slow stacks: a dial of libp2p-webrtc takes 0.2 s, and a failing one 10 s.
fn few(stack: &Stack, count: usize) -> usize {
    if stack.slow {
        (count / 10).max(1)
    } else {
        count
    }
}

/// The values of the single line of a run.
fn outcome(dialled: Dialled, read: impl Fn(&str) -> Option<Vec<Option<f64>>>) -> Outcome {
    let values = dialled.lines.first().and_then(|line| read(line));
    let mut failures = dialled.failures;
    if values.is_none() && failures.is_empty() {
        failures.push(format!("no figures in {:?}", dialled.lines));
    }
    Outcome {
        values: values.unwrap_or_default(),
        failures,
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}
