//! `wire`: a bottleneck between two TUN devices, each in a network namespace of its own.
//!
//! Prints lines of JSON: the start on the clock of `CLOCK_MONOTONIC`, each new flow, and at the end
//! how late packets were delivered.

use std::error::Error;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lexopt::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGINT, SIGTERM};

use direction::Direction;
use log::{Lateness, Log};
use options::Options;
use packet::{Flow, Flows, Packet};
use tun::Tun;

mod codel;
mod direction;
mod log;
mod loss;
mod options;
mod packet;
mod queue;
mod schedule;
mod tun;

const USAGE: &str = "\
usage: wire NAMESPACE:DEVICE NAMESPACE:DEVICE A_TO_B B_TO_A [--log FILE] [--seconds S] [--seed N]

carries IP packets between two TUN devices that exist; `chrt -f 20 wire ...` gives it priority
";

/// Longer than any packet of a device with the usual MTU.
const MAX_PACKET: usize = 9216;

/// Packets that are read from one device before others are delivered.
const READS: usize = 32;

/// Limits how late a signal or the end is noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

struct Args {
    devices: [String; 2],
    directions: [Options; 2],
    log: Option<PathBuf>,
    seconds: Option<Duration>,
    seed: u64,
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{USAGE}\n{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("wire: {error}\n\n{USAGE}\n{}", options::HELP);
            return ExitCode::from(2);
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Option<Args>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let (mut values, mut log, mut seconds, mut seed) = (Vec::new(), None, None, 1);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("log") => log = Some(parser.value()?.into()),
            Long("seconds") => seconds = Some(parser.value()?.parse_with(seconds_of)?),
            Long("seed") => seed = parser.value()?.parse()?,
            Short('h') | Long("help") => return Ok(None),
            Value(value) => values.push(value.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    let [a, b, forth, back] =
        <[String; 4]>::try_from(values).map_err(|_| "two devices and two directions are needed")?;
    let directions = [direction(&forth)?, direction(&back)?];
    Ok(Some(Args {
        devices: [a, b],
        directions,
        log,
        seconds,
        seed,
    }))
}

fn seconds_of(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

fn direction(text: &str) -> Result<Options, lexopt::Error> {
    text.parse()
        .map_err(|error: options::Error| lexopt::Error::Custom(error.into()))
}

/// Time since the start.
struct Clock {
    start: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { start: monotonic() }
    }

    fn now(&self) -> Duration {
        monotonic().saturating_sub(self.start)
    }
}

fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    // Since boot, so that no part is negative.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let mut tuns = Vec::new();
    for device in &args.devices {
        tuns.push(Tun::open(device).map_err(|error| format!("{device}: {error}"))?);
    }
    let mut log = args.log.as_deref().map(Log::create).transpose()?;
    let mut seed = args.seed;
    let mut directions = args.directions.map(|options| {
        seed = seed.wrapping_mul(2).wrapping_add(1);
        Direction::new(options, seed)
    });
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // 50 us by default, which would be added to each sleep without real-time priority.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;

    let clock = Clock::start();
    report(&format!("{{\"start_ns\":{}}}", clock.start.as_nanos()))?;
    let mut flows = Flows::default();
    let mut lateness = Lateness::new();
    let mut refused = 0u64;
    let mut spare: Vec<Vec<u8>> = Vec::new();
    while !stop.load(Ordering::Relaxed) && args.seconds.is_none_or(|end| clock.now() < end) {
        for (tun, direction) in tuns.iter().zip(&mut directions) {
            for _ in 0..READS {
                let mut data = spare.pop().unwrap_or_default();
                data.resize(MAX_PACKET, 0);
                let Some(len) = tun.read(&mut data)? else {
                    spare.push(data);
                    break;
                };
                data.truncate(len);
                let (number, new) = flows.number(&data);
                if let Some(flow) = new {
                    report(&describe(number, &flow))?;
                }
                direction.receive(Packet::new(data, number, clock.now()));
            }
        }
        let now = clock.now();
        for (direction, tun) in directions.iter_mut().zip(tuns.iter().rev()) {
            direction.advance(now);
            while let Some((packet, due)) = direction.deliver(now) {
                lateness.add(clock.now().saturating_sub(due));
                // A device that is down refuses packets, as a dead host would.
                refused += u64::from(tun.write(&packet.data).is_err());
                spare.push(packet.data);
            }
        }
        for (index, direction) in directions.iter_mut().enumerate() {
            for record in direction.records() {
                if let Some(log) = &mut log {
                    log.write(&record, index == 1)?;
                }
            }
        }
        let next = directions.iter().filter_map(Direction::next_event).min();
        sleep(&tuns, &clock, next)?;
    }
    if let Some(log) = &mut log {
        log.flush()?;
    }
    report(&format!(
        "{{\"late_p50_us\":{},\"late_p99_us\":{},\"late_max_us\":{},\"refused\":{refused}}}",
        lateness.percentile(0.5),
        lateness.percentile(0.99),
        lateness.max(),
    ))?;
    Ok(())
}

/// Waits for a packet, or until `next`.
fn sleep(tuns: &[Tun], clock: &Clock, next: Option<Duration>) -> io::Result<()> {
    let left = next.map_or(LONGEST_SLEEP, |next| next.saturating_sub(clock.now()));
    let left = left.min(LONGEST_SLEEP);
    if left.is_zero() {
        return Ok(());
    }
    let timeout = Timespec {
        // At most `LONGEST_SLEEP`.
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut fds: Vec<_> = tuns
        .iter()
        .map(|tun| PollFd::new(tun, PollFlags::IN))
        .collect();
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn describe(number: u8, flow: &Flow) -> String {
    let (protocol, from, to) = (flow.protocol(), flow.from, flow.to);
    format!("{{\"flow\":{number},\"protocol\":\"{protocol}\",\"from\":\"{from}\",\"to\":\"{to}\"}}")
}

/// Prints a line at once: the laboratory waits for it.
fn report(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
