//! Measures anabranch, libp2p-quic and libp2p-webrtc side by side and prints a table in Markdown.
//!
//! Two processes on loopback for each figure, a fresh listener each time, and the stacks in turns,
//! so that a disturbance of the machine affects all of them.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use metric::{METRICS, Metric, Outcome};
use options::{Command, Options, STACKS, Stack};

mod json;
mod metric;
mod options;
mod process;
mod syscalls;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Command::Compare(options)) => options,
        Ok(Command::Help) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("compare: {error}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let stacks: Vec<&Stack> = STACKS
        .iter()
        .filter(|stack| options.stacks.iter().any(|name| name == stack.name))
        .collect();
    for stack in &stacks {
        if let Err(error) = process::build(stack) {
            eprintln!("compare: building {}: {error}", stack.name);
            return ExitCode::FAILURE;
        }
    }
    let samples = measure(&options, &stacks);
    if options.json {
        json::print(&options, &stacks, &samples);
    } else {
        print_table(&options, &stacks, &samples);
    }
    if options.syscalls {
        match syscalls::count(&options, &stacks) {
            Ok(counts) if options.json => json::print_syscalls(&stacks, &counts),
            Ok(counts) => syscalls::print_table(&stacks, &counts),
            Err(error) if options.json => json::print_note(&error),
            Err(error) => println!("{error}"),
        }
    }
    ExitCode::SUCCESS
}

/// All outcomes: by metric, then by stack.
type Samples = Vec<Vec<Vec<Outcome>>>;

fn measure(options: &Options, stacks: &[&Stack]) -> Samples {
    let mut samples = vec![vec![Vec::new(); stacks.len()]; METRICS.len()];
    for round in 1..=options.repeat {
        for (metric, by_stack) in METRICS.iter().zip(&mut samples) {
            for (stack, outcomes) in stacks.iter().zip(by_stack) {
                eprintln!("round {round}: {}: {}", metric.name, stack.name);
                let outcome = (metric.measure)(stack, options);
                for failure in &outcome.failures {
                    eprintln!("  {failure}");
                }
                outcomes.push(outcome);
            }
        }
    }
    samples
}

fn print_table(options: &Options, stacks: &[&Stack], samples: &Samples) {
    println!(
        "Medians of {} rounds (least-most). Bulk: {} in all for each figure, {} for libp2p-webrtc; \
         with 10 substreams a tenth on each.\nThe last columns: how many times better the first \
         stack is.\n",
        options.repeat,
        mebibytes(options.bytes),
        mebibytes(options.webrtc_bytes),
    );
    let others = &stacks[1..];
    print!("| |");
    for stack in stacks {
        print!(" {} |", stack.title);
    }
    for other in others {
        print!(" : {} |", other.title);
    }
    println!("\n|---|{}", "---|".repeat(stacks.len() + others.len()));
    for (metric, by_stack) in METRICS.iter().zip(samples) {
        for (i, quantity) in metric.quantities.iter().enumerate() {
            print!("| {quantity} |");
            let mut medians = Vec::new();
            for outcomes in by_stack {
                let (cell, median) = cell(outcomes, i);
                print!(" {cell} |");
                medians.push(median);
            }
            for other in medians.iter().skip(1) {
                match (medians[0], other) {
                    (Some(own), Some(other)) => print!(" {} |", ratio(metric, i, own, *other)),
                    _ => print!(" - |"),
                }
            }
            println!();
        }
    }
    println!();
}

/// The cell of one stack in a row, and its median.
fn cell(outcomes: &[Outcome], quantity: usize) -> (String, Option<f64>) {
    let mut values: Vec<f64> = outcomes
        .iter()
        .filter_map(|outcome| *outcome.values.get(quantity)?)
        .collect();
    values.sort_by(f64::total_cmp);
    let failed: usize = outcomes.iter().map(|outcome| outcome.failures.len()).sum();
    let failures = match failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    let (Some(least), Some(most)) = (values.first(), values.last()) else {
        return (format!("none{failures}"), None);
    };
    let median = values[(values.len() - 1) / 2];
    let range = if values.len() > 1 {
        format!(" ({}-{})", short(*least), short(*most))
    } else {
        String::new()
    };
    (format!("{}{range}{failures}", short(median)), Some(median))
}

fn ratio(metric: &Metric, quantity: usize, own: f64, other: f64) -> String {
    let better = if metric.more_is_better(quantity) {
        own / other
    } else {
        other / own
    };
    if better.is_finite() && better > 0.0 {
        format!("{better:.2}")
    } else {
        "-".to_owned()
    }
}

/// A number with three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
