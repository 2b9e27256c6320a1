//! System calls, in an extra run because counting them slows them down.

use crate::metric::bulk_args;
use crate::options::{Options, Stack};
use crate::process::dial_counted;

const EVENT: &str = "raw_syscalls:sys_enter";

/// Prints a table of system calls for each megabyte, or why there is none.
pub(crate) fn print_table(options: &Options, stacks: &[&Stack]) {
    let mut rows = Vec::new();
    for (direction, streams) in [("up", 1), ("down", 1), ("up", 10), ("down", 10)] {
        let mut row = format!("| {streams} x {direction} |");
        for stack in stacks {
            eprintln!("system calls: {streams} x {direction}: {}", stack.name);
            let (args, bytes) = bulk_args(stack, options, direction, streams);
            match dial_counted(stack, &args, options.limit, EVENT) {
                Err(error) => {
                    println!(
                        "System calls can not be counted here (`perf stat -e {EVENT}`): {error}"
                    );
                    return;
                }
                Ok((dialled, _)) if !dialled.failures.is_empty() => row.push_str(" failed |"),
                Ok((_, calls)) => row.push_str(&format!(" {:.0} |", calls as f64 / (bytes / 1e6))),
            }
        }
        rows.push(row);
    }
    println!("System calls per MB, both sides, connecting and closing included; one run each:\n");
    print!("| |");
    for stack in stacks {
        print!(" {} |", stack.title);
    }
    println!("\n|---|{}", "---|".repeat(stacks.len()));
    for row in rows {
        println!("{row}");
    }
}
