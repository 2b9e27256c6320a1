//! The command line, and all stacks.

use std::time::Duration;

pub(crate) const USAGE: &str = "\
usage: cargo run --release -p compare -- [options]

  --repeat R         rounds, default 5
  --bytes N          volume of each bulk transfer, default 256m
  --webrtc-bytes N   the same for libp2p-webrtc, default 16m
  --echo N           round trips, default 1000
  --dials N          dials one after another, default 100 (a tenth for libp2p-webrtc)
  --handshakes N     dials of which 8 go on at once, default 400 (a tenth for libp2p-webrtc)
  --limit-s S        what takes longer has hung, default 60
  --stacks A,B       of direct, str0m, quic, webrtc; default direct,quic,webrtc
  --no-syscalls      without the extra run that counts system calls
  --json             lines of JSON with all values in place of the tables

N takes the suffixes k, m and g for 2^10, 2^20 and 2^30.";

/// The source of a stack's program.
pub(crate) enum Program {
    /// The example `peer` of anabranch, on an engine.
    Anabranch(&'static str),
    /// A binary and feature of `libp2p-peers`.
    Libp2p(&'static str, &'static str),
}

/// One column.
pub(crate) struct Stack {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) program: Program,
    /// Idle substreams whose memory is measured; libp2p-quic allows no more than 256.
    pub(crate) idle_streams: usize,
    /// Whether it is so slow that it gets smaller volumes.
    pub(crate) slow: bool,
}

/// The columns in the order of the table.
pub(crate) const STACKS: [Stack; 4] = [
    Stack {
        name: "direct",
        title: "anabranch",
        program: Program::Anabranch("direct"),
        idle_streams: 1000,
        slow: false,
    },
    Stack {
        name: "str0m",
        title: "anabranch on str0m",
        program: Program::Anabranch("str0m"),
        idle_streams: 1000,
        slow: false,
    },
    Stack {
        name: "quic",
        title: "libp2p-quic 0.14",
        program: Program::Libp2p("quic-peer", "quic"),
        idle_streams: 200,
        slow: false,
    },
    Stack {
        name: "webrtc",
        title: "libp2p-webrtc 0.10.0-alpha",
        program: Program::Libp2p("webrtc-peer", "webrtc"),
        idle_streams: 200,
        slow: true,
    },
];

pub(crate) struct Options {
    pub(crate) repeat: usize,
    pub(crate) bytes: u64,
    pub(crate) webrtc_bytes: u64,
    pub(crate) echo: usize,
    pub(crate) dials: usize,
    pub(crate) handshakes: usize,
    pub(crate) limit: Duration,
    pub(crate) stacks: Vec<String>,
    pub(crate) syscalls: bool,
    pub(crate) json: bool,
}

impl Options {
    /// Bytes of a bulk transfer.
    pub(crate) fn bytes_for(&self, stack: &Stack) -> u64 {
        if stack.slow {
            self.webrtc_bytes
        } else {
            self.bytes
        }
    }
}

pub(crate) enum Command {
    Compare(Options),
    Help,
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options {
        repeat: 5,
        bytes: 256 << 20,
        webrtc_bytes: 16 << 20,
        echo: 1000,
        dials: 100,
        handshakes: 400,
        limit: Duration::from_secs(60),
        stacks: ["direct", "quic", "webrtc"].map(str::to_owned).to_vec(),
        syscalls: true,
        json: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .ok_or_else(|| format!("{arg} needs a value"))
                .map(|text| (number(&text), text))
        };
        let count = |(number, text): (Option<u64>, String)| {
            number
                .and_then(|number| usize::try_from(number).ok())
                .filter(|number| *number > 0)
                .ok_or_else(|| format!("{arg}: {text:?} is not a number it can take"))
        };
        match arg.as_str() {
            "--repeat" => options.repeat = count(value()?)?,
            "--bytes" => options.bytes = count(value()?)? as u64,
            "--webrtc-bytes" => options.webrtc_bytes = count(value()?)? as u64,
            "--echo" => options.echo = count(value()?)?,
            "--dials" => options.dials = count(value()?)?,
            "--handshakes" => options.handshakes = count(value()?)?,
            "--limit-s" => options.limit = Duration::from_secs(count(value()?)? as u64),
            "--stacks" => {
                let (_, names) = value()?;
                options.stacks = names.split(',').map(str::to_owned).collect();
                // At least one: a split always yields one.
                let known = |name: &String| STACKS.iter().any(|stack| stack.name == name);
                if !options.stacks.iter().all(known) {
                    return Err(format!("--stacks: {names:?} names an unknown one"));
                }
            }
            "--no-syscalls" => options.syscalls = false,
            "--json" => options.json = true,
            "-h" | "--help" => return Ok(Command::Help),
            _ => return Err(format!("unknown option {arg:?}")),
        }
    }
    Ok(Command::Compare(options))
}

fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['k', 'm', 'g']);
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
