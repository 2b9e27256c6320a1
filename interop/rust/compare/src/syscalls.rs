//! System calls, in an additional run because counting slows them down.

use crate::metric::bulk_args;
use crate::options::{Options, Stack};
use crate::process::dial_counted;

const EVENT: &str = "raw_syscalls:sys_enter";

/// System calls for each megabyte: by transfer, then by stack; `None` where it failed.
pub(crate) type Counts = Vec<(String, Vec<Option<f64>>)>;

/// Counts the system calls, or returns why that is not possible.
pub(crate) fn count(options: &Options, stacks: &[&Stack]) -> Result<Counts, String> {
    let mut counts = Vec::new();
    for (direction, streams) in [("up", 1), ("down", 1), ("up", 10), ("down", 10)] {
        let transfer = format!("{streams} x {direction}");
        let mut row = Vec::new();
        for stack in stacks {
            eprintln!("system calls: {transfer}: {}", stack.name);
            let (args, bytes) = bulk_args(stack, options, direction, streams);
            let (dialled, calls) =
                dial_counted(stack, &args, options.limit, EVENT).map_err(|error| {
                    format!(
                        "System calls can not be counted here (`perf stat -e {EVENT}`): {error}"
                    )
                })?;
            let is_whole = dialled.failures.is_empty();
            row.push(is_whole.then_some(calls as f64 / (bytes / 1e6)));
        }
        counts.push((transfer, row));
    }
    Ok(counts)
}

/// Prints a table.
pub(crate) fn print_table(stacks: &[&Stack], counts: &Counts) {
    println!("System calls per MB, both sides, connecting and closing included; one run each:\n");
    print!("| |");
    for stack in stacks {
        print!(" {} |", stack.title);
    }
    println!("\n|---|{}", "---|".repeat(stacks.len()));
    for (transfer, row) in counts {
        print!("| {transfer} |");
        for calls in row {
            match calls {
                Some(calls) => print!(" {calls:.0} |"),
                None => print!(" failed |"),
            }
        }
        println!();
    }
}
