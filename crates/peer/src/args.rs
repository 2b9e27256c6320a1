//! The command line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::cases::Case;
use crate::content;
use crate::{Flag, Settings, Stack};

/// The help, up to the flags of a stack.
const OPTIONS: &str = "\
what to do (default: bench)
  --up N --down N --streams K --chunk N      /bench/1.0.0: so much on each of K substreams at once
  --echo --size N --count N                  so many open, echo, close round trips
  --conns N --parallel P --hold-ms MS        idle connections, dialled P at once (default 1)
  --idle-streams N --hold-ms MS              idle substreams of one connection
  --stall --up N --hold-ms MS                the responder does not read for MS
  --stall-down --down N --hold-ms MS         the opener does not read for MS
  --case NAME                                half-close, reset-local, reset-remote; may be repeated

more options
  --nofin          /bench-nofin/1.0.0 in place of bench, and echo without half-close
  --peer-pid PID   report the memory and the processor time of that process, the listener's
  --repeat R       so many times, each with a fresh connection
  --timeout-s S    a limit for each operation, default 60
";

/// The end of the help.
const LINES: &str = "
All lines except those of a stall or a case contain cpu_s and, with --peer-pid, peer_cpu_s:
processor seconds of this process and of that one, user and system, over the time of `seconds`.
Those of --conns also contain hold_cpu_s and peer_hold_cpu_s, over the hold_s seconds of --hold-ms.
N takes the suffixes k, m and g for 2^10, 2^20 and 2^30.";

/// The output of `--help`.
pub(crate) fn usage<S: Stack>() -> String {
    let (name, listen) = (S::NAME, S::LISTEN);
    let mut usage = format!(
        "usage: {name} listen [--addr MULTIADDR]...     default {listen}\n       \
         {name} dial MULTIADDR [options]\n\n{OPTIONS}"
    );
    for Flag { name, help } in S::FLAGS {
        usage += &format!("  {name:<17}{help}\n");
    }
    usage + LINES + S::HELP
}

/// Default of the bytes that a stall sends: far more than any window.
const STALL_BYTES: u64 = 64 << 20;

/// A parsed command line, with addresses of type `A`.
#[derive(Debug)]
pub(crate) enum Command<A> {
    /// Run the responders on these addresses, by default on that of the stack.
    Listen(Vec<A>),
    /// Be the opener.
    Dial(Box<Options<A>>),
    /// Print the help.
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
pub(crate) struct Options<A> {
    pub(crate) address: A,
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
    pub(crate) settings: Settings,
    pub(crate) repeat: usize,
    pub(crate) timeout: Duration,
}

impl<A: FromStr<Err: fmt::Display>> Command<A> {
    /// Parses the arguments after the program's name. `flags` are those of the stack.
    pub(crate) fn parse(
        mut args: impl Iterator<Item = String>,
        flags: &[Flag],
    ) -> Result<Self, String> {
        match args.next().as_deref() {
            Some("listen") => parse_listen(args),
            Some("dial") => parse_dial(args, flags),
            Some("-h" | "--help" | "help") => Ok(Self::Help),
            Some(other) => Err(format!("unknown command {other:?}")),
            None => Err("a command is missing".to_owned()),
        }
    }
}

fn parse_listen<A: FromStr<Err: fmt::Display>>(
    mut args: impl Iterator<Item = String>,
) -> Result<Command<A>, String> {
    let mut addresses = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--addr" => addresses.push(address(&value(&mut args, &arg)?)?),
            "-h" | "--help" => return Ok(Command::Help),
            _ => return Err(format!("unknown option {arg:?}")),
        }
    }
    Ok(Command::Listen(addresses))
}

fn parse_dial<A: FromStr<Err: fmt::Display>>(
    mut args: impl Iterator<Item = String>,
    flags: &[Flag],
) -> Result<Command<A>, String> {
    let mut target = None;
    let (mut modes, mut cases) = (Vec::new(), Vec::new());
    let (mut up, mut down) = (None, None);
    let (mut streams, mut chunk) = (1, content::DEFAULT_CHUNK);
    let (mut size, mut count) = (1 << 10, 100);
    let mut parallel = 1;
    let mut hold = Duration::from_secs(1);
    let mut peer_pid = None;
    let mut settings = Settings::default();
    let mut repeat = 1;
    let mut timeout = Duration::from_secs(60);

    while let Some(arg) = args.next() {
        let mut value = || value(&mut args, &arg);
        match arg.as_str() {
            "--up" => up = Some(bytes(&arg, &value()?)?),
            "--down" => down = Some(bytes(&arg, &value()?)?),
            "--streams" => streams = positive(&arg, &value()?)?,
            "--chunk" => chunk = chunk_size(&arg, &value()?)?,
            "--echo" => modes.push(Mode::Echo),
            "--size" => size = bytes(&arg, &value()?)?,
            "--count" => count = positive(&arg, &value()?)?,
            "--conns" => modes.push(Mode::Connections(positive(&arg, &value()?)?)),
            "--parallel" => parallel = positive(&arg, &value()?)?,
            "--idle-streams" => modes.push(Mode::IdleStreams(positive(&arg, &value()?)?)),
            "--hold-ms" => hold = Duration::from_millis(number(&arg, &value()?)?),
            "--stall" => modes.push(Mode::Stall),
            "--stall-down" => modes.push(Mode::StallDown),
            "--case" => cases.push(value()?.parse()?),
            "--peer-pid" => peer_pid = Some(number(&arg, &value()?)?),
            "--nofin" => settings.nofin = true,
            "--repeat" => repeat = positive(&arg, &value()?)?,
            "--timeout-s" => timeout = seconds(&arg, &value()?)?,
            "-h" | "--help" => return Ok(Command::Help),
            option if option.starts_with('-') => {
                let flag = flags.iter().find(|flag| flag.name == option);
                let flag = flag.ok_or_else(|| format!("unknown option {arg:?}"))?;
                settings.flags.push(flag.name);
            }
            text if target.is_none() => target = Some(address(text)?),
            _ => return Err(format!("unexpected argument {arg:?}")),
        }
    }

    let address = target.ok_or("dial needs the address of a listener")?;
    if !cases.is_empty() {
        modes.push(Mode::Cases(cases));
    }
    if modes.len() > 1 {
        return Err(
            "--echo, --conns, --idle-streams, --stall, --stall-down and --case exclude each other"
                .to_owned(),
        );
    }
    let mode = modes.pop().unwrap_or(Mode::Bench);
    let default_of = |stall| if mode == stall { STALL_BYTES } else { 0 };
    Ok(Command::Dial(Box::new(Options {
        address,
        up: up.unwrap_or_else(|| default_of(Mode::Stall)),
        down: down.unwrap_or_else(|| default_of(Mode::StallDown)),
        mode,
        streams,
        chunk,
        size,
        count,
        parallel,
        hold,
        peer_pid,
        settings,
        repeat,
        timeout,
    })))
}

fn value(args: &mut impl Iterator<Item = String>, option: &str) -> Result<String, String> {
    args.next().ok_or_else(|| format!("{option} needs a value"))
}

fn address<A: FromStr<Err: fmt::Display>>(text: &str) -> Result<A, String> {
    text.parse()
        .map_err(|error| format!("address {text:?}: {error}"))
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

/// A number of bytes, with or without a suffix.
fn bytes(option: &str, text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['k', 'm', 'g', 'K', 'M', 'G']);
    let unit: u64 = match text.get(digits.len()..) {
        Some("") => 1,
        Some("k" | "K") => 1 << 10,
        Some("m" | "M") => 1 << 20,
        Some("g" | "G") => 1 << 30,
        _ => return Err(format!("{option}: {text:?} has more than one suffix")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_suffixes() {
        for (text, expected) in [
            ("0", 0),
            ("17", 17),
            ("1k", 1024),
            ("64m", 64 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(bytes("--up", text), Ok(expected));
        }
        for text in ["", "k", "1kk", "1.5m", "-1", "99999999999g"] {
            assert!(bytes("--up", text).is_err(), "{text}");
        }
    }

    fn dial(args: &str) -> Result<Options<String>, String> {
        const FLAGS: [Flag; 1] = [Flag {
            name: "--v2",
            help: "",
        }];
        let args = args.split_whitespace().map(str::to_owned);
        match Command::parse(args, &FLAGS)? {
            Command::Dial(options) => Ok(*options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn dial_takes_one_mode_and_the_flags_of_its_stack() {
        let options = dial("dial /a --v2 --stall --nofin").unwrap();
        assert_eq!(options.address, "/a");
        assert_eq!(options.mode, Mode::Stall);
        assert_eq!((options.up, options.down), (STALL_BYTES, 0));
        assert!(options.settings.nofin);
        assert_eq!(options.settings.flags, ["--v2"]);

        let options = dial("dial /a --case half-close --case reset-local").unwrap();
        let cases = vec![Case::HalfClose, Case::ResetLocal];
        assert_eq!(options.mode, Mode::Cases(cases));

        for wrong in [
            "dial",
            "dial /a /b",
            "dial /a --v3",
            "dial /a --case nothing",
            "dial /a --echo --stall",
            "dial /a --echo --case half-close",
        ] {
            dial(wrong).unwrap_err();
        }
    }
}
