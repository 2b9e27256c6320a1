//! What a direction of the path does, as text: `rate=50m/0@7/50m@9,delay=25,queue=312500`.

use std::str::FromStr;
use std::time::Duration;

use crate::codel;
use crate::loss::Burst;
use crate::schedule::Schedule;

/// The help on options of a direction.
pub(crate) const HELP: &str = "\
options of a direction, separated by commas; numbers take the suffixes k, m and g
  rate=BITS[/BITS@S...]     bits a second of the link, from S seconds on; 0 is an outage
  delay=MS[/MS@S...]        propagation delay
  queue=BYTES               limit of the queue, whose tail is dropped
  codel=TARGET:INTERVAL     CoDel with these times in ms
  ecn                       CoDel marks packets of ECN-capable transports instead of dropping them
  mark=MS                   marks them if they were longer than MS in the queue
  loss=P[/P@S...]           probability of loss after the link
  burst=GOOD:BAD:LOSS       Gilbert-Elliott: mean lengths of both states in ms, loss in the bad one
  reorder=P:MS              probability of MS more delay
  jitter=MS                 up to MS more delay for each packet, which stay in order
  batch=MS                  packets arrive together, at multiples of MS
  police=BITS:BYTES         token bucket before the queue
  bleach[=after]            clears the ECN field before the queue, or after it";

/// Where the ECN field is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bleach {
    /// Marks of the queue are lost.
    AfterQueue,
    /// The queue drops what it would mark.
    BeforeQueue,
}

/// What a direction does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// Bits a second.
    pub(crate) rate: Schedule<f64>,
    pub(crate) delay: Schedule<Duration>,
    /// Bytes.
    pub(crate) queue: usize,
    pub(crate) codel: Option<codel::Settings>,
    pub(crate) mark: Option<Duration>,
    pub(crate) loss: Schedule<f64>,
    pub(crate) burst: Option<Burst>,
    /// Probability, and what is added to the delay.
    pub(crate) reorder: Option<(f64, Duration)>,
    pub(crate) jitter: Option<Duration>,
    pub(crate) batch: Option<Duration>,
    /// Bits a second, and bytes.
    pub(crate) police: Option<(f64, f64)>,
    pub(crate) bleach: Option<Bleach>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: Schedule::constant(1e9),
            delay: Schedule::constant(Duration::ZERO),
            queue: 1_000_000,
            codel: None,
            mark: None,
            loss: Schedule::constant(0.0),
            burst: None,
            reorder: None,
            jitter: None,
            batch: None,
            police: None,
            bleach: None,
        }
    }
}

/// Why an option was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("ecn needs codel")]
    EcnWithoutCodel,
    #[error("{0} does not fit")]
    Range(String),
    #[error("the times of {0:?} do not increase")]
    Times(String),
    #[error("unknown option {0:?}")]
    Unknown(String),
    #[error("{0:?} is no number")]
    NoNumber(String),
    #[error("{0:?} has another number of values")]
    Values(String),
}

impl FromStr for Options {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Self::default();
        let mut ecn = false;
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            match name {
                "rate" => options.rate = schedule(value, number)?,
                "delay" => options.delay = schedule(value, millis)?,
                "queue" => options.queue = number(value)? as usize,
                "codel" => {
                    let [target, interval] = values(value)?;
                    options.codel = Some(codel::Settings {
                        target: positive(target)?,
                        interval: positive(interval)?,
                        ecn: false,
                    });
                }
                "ecn" if value.is_empty() => ecn = true,
                "mark" => options.mark = Some(millis(value)?),
                "loss" => options.loss = schedule(value, probability)?,
                "burst" => {
                    let [good, bad, loss] = values(value)?;
                    options.burst = Some(Burst {
                        good: positive(good)?,
                        bad: positive(bad)?,
                        loss: probability(loss)?,
                    });
                }
                "reorder" => {
                    let [share, extra] = values(value)?;
                    options.reorder = Some((probability(share)?, millis(extra)?));
                }
                "jitter" => options.jitter = Some(millis(value)?),
                "batch" => options.batch = Some(positive(value)?),
                "police" => {
                    let [rate, burst] = values(value)?;
                    options.police = Some((number(rate)?, number(burst)?));
                }
                "bleach" if value.is_empty() => options.bleach = Some(Bleach::BeforeQueue),
                "bleach" if value == "after" => options.bleach = Some(Bleach::AfterQueue),
                _ => return Err(Error::Unknown(item.to_owned())),
            }
        }
        if ecn {
            options.codel.as_mut().ok_or(Error::EcnWithoutCodel)?.ecn = true;
        }
        Ok(options)
    }
}

/// A number that is not negative, with a suffix.
fn number(text: &str) -> Result<f64, Error> {
    let (digits, factor) = match text.chars().last() {
        Some('k') => (&text[..text.len() - 1], 1e3),
        Some('m') => (&text[..text.len() - 1], 1e6),
        Some('g') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| Error::NoNumber(text.to_owned()))?;
    // Far above what is meant, and below what a `Duration` or a `usize` holds.
    match (0.0..=1e12).contains(&number) {
        true => Ok(number * factor),
        false => Err(Error::Range(text.to_owned())),
    }
}

fn probability(text: &str) -> Result<f64, Error> {
    let share = number(text)?;
    match share <= 1.0 {
        true => Ok(share),
        false => Err(Error::Range(text.to_owned())),
    }
}

fn duration(text: &str, unit: f64) -> Result<Duration, Error> {
    let time = Duration::try_from_secs_f64(number(text)? * unit);
    time.map_err(|_| Error::Range(text.to_owned()))
}

fn millis(text: &str) -> Result<Duration, Error> {
    duration(text, 1e-3)
}

fn positive(text: &str) -> Result<Duration, Error> {
    let time = millis(text)?;
    match time.is_zero() {
        true => Err(Error::Range(text.to_owned())),
        false => Ok(time),
    }
}

/// Exactly `N` values with colons between them.
fn values<const N: usize>(text: &str) -> Result<[&str; N], Error> {
    let values: Vec<_> = text.split(':').collect();
    values
        .try_into()
        .map_err(|_| Error::Values(text.to_owned()))
}

/// `VALUE/VALUE@SECONDS/...`
fn schedule<T: Copy>(
    text: &str,
    value: impl Fn(&str) -> Result<T, Error>,
) -> Result<Schedule<T>, Error> {
    let step = |step: &str| {
        let (text, from) = step.split_once('@').unwrap_or((step, "0"));
        Ok((duration(from, 1.0)?, value(text)?))
    };
    let steps = text.split('/').map(step).collect::<Result<_, _>>()?;
    Schedule::new(steps).ok_or_else(|| Error::Times(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn parse(text: &str) -> Result<Options, Error> {
        text.parse()
    }

    #[test]
    fn every_option_is_parsed() {
        let text = "rate=50m/0@7/1.5m@9.5,delay=25/50@13,queue=312500,codel=5:100,ecn,mark=2.5,\
                    loss=0.01,burst=995:5:1,reorder=0.05:20,jitter=10,batch=20,\
                    police=20m:60k,bleach=after";
        let options = parse(text).expect("valid");
        assert_eq!(options.rate.at(Duration::from_secs(8)), 0.0);
        assert_eq!(options.rate.at(Duration::from_millis(9500)), 1.5e6);
        assert_eq!(options.delay.at(Duration::from_secs(13)), 50 * MS);
        assert_eq!(options.queue, 312_500);
        let codel = codel::Settings {
            target: 5 * MS,
            interval: 100 * MS,
            ecn: true,
        };
        assert_eq!(options.codel, Some(codel));
        assert_eq!(options.mark, Some(MS * 5 / 2));
        assert_eq!(options.loss.at(Duration::ZERO), 0.01);
        let burst = Burst {
            good: 995 * MS,
            bad: 5 * MS,
            loss: 1.0,
        };
        assert_eq!(options.burst, Some(burst));
        assert_eq!(options.reorder, Some((0.05, 20 * MS)));
        assert_eq!(
            (options.jitter, options.batch),
            (Some(10 * MS), Some(20 * MS))
        );
        assert_eq!(options.police, Some((2e7, 6e4)));
        assert_eq!(options.bleach, Some(Bleach::AfterQueue));
        assert_eq!(
            parse("bleach").map(|o| o.bleach),
            Ok(Some(Bleach::BeforeQueue))
        );
        assert_eq!(parse(""), Ok(Options::default()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |text: &str| parse(text).expect_err(text);
        assert_eq!(refused("speed=1"), Error::Unknown("speed=1".to_owned()));
        assert_eq!(refused("ecn"), Error::EcnWithoutCodel);
        assert_eq!(refused("rate=fast"), Error::NoNumber("fast".to_owned()));
        assert_eq!(refused("rate="), Error::NoNumber(String::new()));
        assert_eq!(refused("delay=-1"), Error::Range("-1".to_owned()));
        assert_eq!(refused("loss=1.5"), Error::Range("1.5".to_owned()));
        assert_eq!(refused("rate=nan"), Error::Range("nan".to_owned()));
        assert_eq!(refused("codel=5"), Error::Values("5".to_owned()));
        assert_eq!(refused("codel=5:0"), Error::Range("0".to_owned()));
        assert_eq!(
            refused("rate=1/2@9/3@8"),
            Error::Times("1/2@9/3@8".to_owned())
        );
        assert_eq!(
            refused("bleach=twice"),
            Error::Unknown("bleach=twice".to_owned())
        );
    }
}
