//! All values as lines of JSON, for `scripts/figures.sh`.

use crate::Samples;
use crate::metric::METRICS;
use crate::options::{Options, Stack};
use crate::syscalls::Counts;

/// A line about the run, and one for each quantity and stack.
pub(crate) fn print(options: &Options, stacks: &[&Stack], samples: &Samples) {
    println!(
        "{{\"rounds\":{},\"bytes\":{},\"webrtc_bytes\":{},\"echo\":{}}}",
        options.repeat, options.bytes, options.webrtc_bytes, options.echo
    );
    for (metric, by_stack) in METRICS.iter().zip(samples) {
        for (i, quantity) in metric.quantities.iter().enumerate() {
            for (stack, outcomes) in stacks.iter().zip(by_stack) {
                let values: Vec<f64> = outcomes
                    .iter()
                    .filter_map(|outcome| *outcome.values.get(i)?)
                    .collect();
                let failures = outcomes.iter().flat_map(|outcome| &outcome.failures);
                println!(
                    "{{\"metric\":{:?},\"quantity\":{quantity:?},\"more_is_better\":{},\
                     \"stack\":{:?},\"title\":{:?},\"values\":{values:?},\"failed\":{}}}",
                    metric.name,
                    metric.more_is_better(i),
                    stack.name,
                    stack.title,
                    failures.count(),
                );
            }
        }
    }
}

pub(crate) fn print_syscalls(stacks: &[&Stack], counts: &Counts) {
    for (transfer, row) in counts {
        for (stack, calls) in stacks.iter().zip(row) {
            let null = || "null".to_owned();
            let calls = calls.map_or_else(null, |calls| format!("{calls:.1}"));
            println!(
                "{{\"syscalls_per_MB\":{calls},\"transfer\":{transfer:?},\"stack\":{:?},\
                 \"title\":{:?}}}",
                stack.name, stack.title
            );
        }
    }
}

/// Prints what could not be measured, and why.
pub(crate) fn print_note(note: &str) {
    let plain: String = note
        .chars()
        .map(|c| {
            if c.is_ascii() && !c.is_control() {
                c
            } else {
                ' '
            }
        })
        .collect();
    println!("{{\"note\":{plain:?}}}");
}
