//! How measurements of one thing spread, and where they lead over time.

use serde::{Deserialize, Serialize};

/// Some measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// A quarter is below.
    pub q1: f64,
    /// Half are below.
    pub median: f64,
    /// Three quarters are below.
    pub q3: f64,
    /// 99 in 100 are at or below; the largest, of fewer than a hundred.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        // The nearest rank, so that every figure is one that was measured.
        let rank = |part: f64| {
            let rank = (part * values.len() as f64).ceil() as usize;
            values.get(rank.max(1) - 1).copied().map(round)
        };
        Some(Self {
            count: values.len(),
            min: rank(0.0)?,
            q1: rank(0.25)?,
            median: rank(0.5)?,
            q3: rank(0.75)?,
            p99: rank(0.99)?,
            max: rank(1.0)?,
        })
    }
}

/// Six digits: the rest is noise, and would be different after a trip through text.
fn round(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// The slope of the straight line that is nearest to the points (least squares).
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), point| {
        let dx = point.0 - x;
        (above + dx * (point.1 - y), below + dx * dx)
    });
    (points.len() > 2 && below > 0.0).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_values_that_were_measured() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!((spread.min, spread.max), (1.0, 200.0));
        assert_eq!((spread.q1, spread.median, spread.q3), (50.0, 100.0, 150.0));
        assert_eq!((spread.p99, spread.count), (198.0, 200));
        assert_eq!(Spread::of(vec![]), None);
        let one = Spread::of(vec![7.0]).unwrap();
        assert_eq!((one.min, one.median, one.p99), (7.0, 7.0, 7.0));
    }

    #[test]
    fn a_slope_is_that_of_the_nearest_line() {
        let line: Vec<(f64, f64)> = (0..10)
            .map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0))
            .collect();
        assert!((slope(&line).unwrap() - 3.0).abs() < 1e-9);
        assert_eq!(slope(&line[..2]), None);
        assert_eq!(slope(&[(1.0, 1.0); 5]), None);
    }
}
