//! The command line: that of `examples/peer`, as far as it means anything to other stacks.

use std::str::FromStr;
use std::time::Duration;

use crate::cases::Case;
use crate::content;

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
usage: PEER listen [--addr MULTIADDR]
       PEER dial MULTIADDR [options]

what to do (default: bench)
  --up N --down N --streams K --chunk N      /bench/1.0.0: so much on each of K substreams at once
  --echo --size N --count N                  so many open, echo, close round trips
  --conns N --parallel P --hold-ms MS        idle connections, dialled P at once
  --idle-streams N --hold-ms MS              idle substreams of one connection
  --stall --up N --hold-ms MS                the responder does not read for MS
  --stall-down --down N --hold-ms MS         the opener does not read for MS
  --case NAME                                a case of README.md; may be repeated

more options
  --nofin          /bench-nofin/1.0.0 in place of bench, and echo without half-close
  --peer-pid PID   report the memory and the processor time of that process, the listener's
  --repeat R       so many times, each with a fresh connection
  --timeout-s S    a limit for each operation, default 60

Lines but those of a stall hold cpu_s and, with --peer-pid, peer_cpu_s: processor seconds of this
process and of that one, user and system, over the time that `seconds` is about. Those of --conns hold
hold_cpu_s and peer_hold_cpu_s as well, over the hold_s seconds of --hold-ms.
N takes the suffixes k, m and g for 2^10, 2^20 and 2^30.";

/// Bytes that a stall sends if nothing else is said: far more than any window.
const STALL_BYTES: u64 = 64 << 20;

/// A parsed command line.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the responders on this address.
    Listen(Option<String>),
    /// Be the opener.
    Dial(Box<Options>),
    /// Print [`USAGE`].
    Help,
}

/// What the opener does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bulk transfer.
    Bench,
    /// Round trips.
    Echo,
    /// That many idle connections.
    Connections(usize),
    /// That many idle substreams.
    IdleStreams(usize),
    /// A responder that does not read for a while.
    Stall,
    /// An opener that does not read for a while.
    StallDown,
    /// Behaviour rather than figures.
    Cases(Vec<Case>),
}

/// The options of `dial`.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) address: String,
    pub(crate) mode: Mode,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) streams: usize,
    pub(crate) chunk: usize,
    pub(crate) size: u64,
    pub(crate) count: usize,
    pub(crate) parallel: usize,
    pub(crate) hold: Duration,
    pub(crate) peer_pid: Option<u32>,
    pub(crate) nofin: bool,
    pub(crate) repeat: usize,
    pub(crate) timeout: Duration,
}

impl Command {
    /// Parses the arguments behind the program's name.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        match args.next().as_deref() {
            Some("listen") => parse_listen(args),
            Some("dial") => parse_dial(args),
            Some("-h" | "--help" | "help") => Ok(Self::Help),
            Some(other) => Err(format!("unknown command {other:?}")),
            None => Err("a command is missing".to_owned()),
        }
    }
}

fn parse_listen(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut address = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--addr" if address.is_none() => address = Some(value(&mut args, &arg)?),
            "-h" | "--help" => return Ok(Command::Help),
            _ => return Err(format!("unexpected argument {arg:?}")),
        }
    }
    Ok(Command::Listen(address))
}

fn parse_dial(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut modes = Vec::new();
    let mut cases: Vec<Case> = Vec::new();
    let (mut address, mut up, mut down) = (None, None, None);
    let mut options = Options {
        address: String::new(),
        mode: Mode::Bench,
        up: 0,
        down: 0,
        streams: 1,
        chunk: content::DEFAULT_CHUNK,
        size: 1 << 10,
        count: 100,
        parallel: 1,
        hold: Duration::from_secs(1),
        peer_pid: None,
        nofin: false,
        repeat: 1,
        timeout: Duration::from_secs(60),
    };
    while let Some(arg) = args.next() {
        let mut value = || value(&mut args, &arg);
        match arg.as_str() {
            "--up" => up = Some(bytes(&arg, &value()?)?),
            "--down" => down = Some(bytes(&arg, &value()?)?),
            "--streams" => options.streams = positive(&arg, &value()?)?,
            "--chunk" => options.chunk = chunk_size(&arg, &value()?)?,
            "--echo" => modes.push(Mode::Echo),
            "--size" => options.size = bytes(&arg, &value()?)?,
            "--count" => options.count = positive(&arg, &value()?)?,
            "--conns" => modes.push(Mode::Connections(positive(&arg, &value()?)?)),
            "--parallel" => options.parallel = positive(&arg, &value()?)?,
            "--idle-streams" => modes.push(Mode::IdleStreams(positive(&arg, &value()?)?)),
            "--hold-ms" => options.hold = Duration::from_millis(number(&arg, &value()?)?),
            "--stall" => modes.push(Mode::Stall),
            "--stall-down" => modes.push(Mode::StallDown),
            "--case" => cases.push(value()?.parse()?),
            "--peer-pid" => options.peer_pid = Some(number(&arg, &value()?)?),
            "--nofin" => options.nofin = true,
            "--repeat" => options.repeat = positive(&arg, &value()?)?,
            "--timeout-s" => options.timeout = seconds(&arg, &value()?)?,
            "-h" | "--help" => return Ok(Command::Help),
            option if option.starts_with('-') => return Err(format!("unknown option {arg:?}")),
            text if address.is_none() => address = Some(text.to_owned()),
            _ => return Err(format!("unexpected argument {arg:?}")),
        }
    }
    if !cases.is_empty() {
        modes.push(Mode::Cases(cases));
    }
    if modes.len() > 1 {
        return Err("only one thing can be done at once".to_owned());
    }
    options.address = address.ok_or("dial needs the address of a listener")?;
    options.mode = modes.pop().unwrap_or(Mode::Bench);
    let default_of = |mode| if options.mode == mode { STALL_BYTES } else { 0 };
    options.up = up.unwrap_or(default_of(Mode::Stall));
    options.down = down.unwrap_or(default_of(Mode::StallDown));
    Ok(Command::Dial(Box::new(options)))
}

fn value(args: &mut impl Iterator<Item = String>, option: &str) -> Result<String, String> {
    args.next().ok_or_else(|| format!("{option} needs a value"))
}

fn number<T: FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{option}: {text:?} is not a number it can take"))
}

fn positive(option: &str, text: &str) -> Result<usize, String> {
    match number(option, text)? {
        0 => Err(format!("{option} must not be 0")),
        n => Ok(n),
    }
}

fn seconds(option: &str, text: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(option, text)?)
        .ok()
        .filter(|limit| !limit.is_zero())
        .ok_or_else(|| format!("{option}: {text:?} is not a duration"))
}

/// A number of bytes, with a suffix or without.
fn bytes(option: &str, text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    number::<u64>(option, digits)?
        .checked_mul(unit)
        .ok_or_else(|| format!("{option}: {text:?} is too large"))
}

fn chunk_size(option: &str, text: &str) -> Result<usize, String> {
    let size = bytes(option, text)?;
    usize::try_from(size)
        .ok()
        .filter(|size| (1..=content::MAX_CHUNK).contains(size))
        .ok_or_else(|| format!("{option} must be 1 to {}", content::MAX_CHUNK))
}
