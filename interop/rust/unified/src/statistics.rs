//! The statistics of samples, as the contract of `perf` defines them.

use std::fmt::{self, Display, Formatter};

/// Quartiles, the least and the most without outliers, and all samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    min: f64,
    q1: f64,
    median: f64,
    q3: f64,
    max: f64,
    outliers: Vec<f64>,
    samples: Vec<f64>,
}

impl Summary {
    /// Summarises samples. An outlier is farther than 1.5 interquartile ranges from the quartiles.
    /// `None` without samples.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let (q1, median, q3) = (
            quantile(&samples, 0.25)?,
            quantile(&samples, 0.5)?,
            quantile(&samples, 0.75)?,
        );
        let fence = 1.5 * (q3 - q1);
        let is_outlier = |sample: &&f64| **sample < q1 - fence || **sample > q3 + fence;
        let (outliers, others): (Vec<f64>, Vec<f64>) = samples.iter().partition(is_outlier);
        Some(Self {
            min: *others.first()?,
            q1,
            median,
            q3,
            max: *others.last()?,
            outliers,
            samples,
        })
    }

    /// The section of the results with this name. Samples are in `unit`.
    #[must_use]
    pub fn section<'a>(&'a self, name: &'a str, unit: &'a str) -> impl Display + 'a {
        Section(self, name, unit)
    }
}

/// Between two samples: linear.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (
        sorted.get(at.floor() as usize)?,
        sorted.get(at.ceil() as usize)?,
    );
    Some(below + (above - below) * at.fract())
}

struct Section<'a>(&'a Summary, &'a str, &'a str);

impl Display for Section<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(summary, name, unit) = self;
        // Four digits: 1 Mbit/s is 0.0010 Gbps.
        let list = |values: &[f64]| {
            let values: Vec<_> = values.iter().map(|value| format!("{value:.4}")).collect();
            values.join(", ")
        };
        writeln!(f, "{name}:")?;
        writeln!(f, "  iterations: {}", summary.samples.len())?;
        for (name, value) in [
            ("min", summary.min),
            ("q1", summary.q1),
            ("median", summary.median),
            ("q3", summary.q3),
            ("max", summary.max),
        ] {
            writeln!(f, "  {name}: {value:.4}")?;
        }
        writeln!(f, "  outliers: [{}]", list(&summary.outliers))?;
        writeln!(f, "  samples: [{}]", list(&summary.samples))?;
        writeln!(f, "  unit: {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_samples_and_outliers_are_apart() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0, 100.0]).expect("samples");
        assert_eq!((summary.q1, summary.median, summary.q3), (2.0, 3.0, 4.0));
        assert_eq!((summary.min, summary.max), (1.0, 4.0));
        assert_eq!(summary.outliers, [100.0]);
        assert_eq!(summary.samples, [1.0, 2.0, 3.0, 4.0, 100.0]);
        let summary = Summary::of(vec![1.0, 2.0]).expect("samples");
        assert_eq!((summary.q1, summary.median, summary.q3), (1.25, 1.5, 1.75));
    }

    #[test]
    fn one_sample_is_everything_and_none_is_nothing() {
        let summary = Summary::of(vec![7.0]).expect("a sample");
        assert_eq!((summary.min, summary.median, summary.max), (7.0, 7.0, 7.0));
        assert_eq!(summary.outliers, [0.0; 0]);
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn a_section_has_the_fields_of_the_contract_in_their_order() {
        let summary = Summary::of(vec![0.5, 0.25]).expect("samples");
        let expected = "\
upload:
  iterations: 2
  min: 0.2500
  q1: 0.3125
  median: 0.3750
  q3: 0.4375
  max: 0.5000
  outliers: []
  samples: [0.2500, 0.5000]
  unit: Gbps
";
        assert_eq!(summary.section("upload", "Gbps").to_string(), expected);
    }
}
