//! Figures of all rounds in a few: the least, the middle, the most; and how they are spread.
//!
//! There is one figure for each round, so they are kept and sorted: what is told is one that was measured, not the bound
//! of a bucket.

/// At most so many bars.
const BARS: f64 = 12.0;
/// The narrowest one: writes don't begin more evenly than that.
const NARROWEST: f64 = 10.0;
/// Columns of the longest bar.
const WIDTH: usize = 40;

/// Some figures, in few.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many there are.
    pub count: usize,
    /// The least.
    pub min: f64,
    /// Half of them are no more.
    pub median: f64,
    /// Nine of ten are no more.
    pub p90: f64,
    /// The most.
    pub max: f64,
}

impl Summary {
    /// Of these; none if there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Summary {
            count: sorted.len(),
            min: *sorted.first()?,
            median: nearest_rank(&sorted, 50)?,
            p90: nearest_rank(&sorted, 90)?,
            max: *sorted.last()?,
        })
    }
}

/// The least of them that so many in a hundred do not exceed.
fn nearest_rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// How many figures lie in a span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Where it begins.
    pub from: f64,
    /// Where it ends; what is just there is in the next one.
    pub to: f64,
    /// How many.
    pub count: usize,
}

/// Spans of one round width, from the least to the most.
pub fn histogram(figures: &[f64]) -> Vec<Bar> {
    let Some(all) = Summary::of(figures.iter().copied()) else {
        return Vec::new();
    };
    let width = round_width((all.max - all.min) / BARS);
    let first = (all.min / width).floor();
    let bars = ((all.max / width).floor() - first) as usize + 1;
    let bar = |at: usize| {
        let number = first + at as f64;
        Bar {
            from: number * width,
            to: (number + 1.0) * width,
            count: figures
                .iter()
                .filter(|figure| (**figure / width).floor() == number)
                .count(),
        }
    };
    (0..bars).map(bar).collect()
}

/// The next of 10, 20, 50, 100 and so on.
fn round_width(least: f64) -> f64 {
    let mut decade = NARROWEST;
    loop {
        for step in [1.0, 2.0, 5.0] {
            if decade * step >= least {
                return decade * step;
            }
        }
        decade *= 10.0;
    }
}

/// A line for each bar.
pub fn drawn(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(0).max(1);
    let line = |bar: &Bar| {
        let columns = (bar.count * WIDTH).div_ceil(most.max(WIDTH));
        let line = format!(
            "{:>7.0} to {:>6.0} ms  {:>4}  {}",
            bar.from,
            bar.to,
            bar.count,
            "█".repeat(columns)
        );
        line.trim_end().to_string() + "\n"
    };
    bars.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_was_measured() {
        let twenty = (1..=20).rev().map(f64::from);
        let summary = Summary::of(twenty).expect("figures");
        assert_eq!(
            summary,
            Summary {
                count: 20,
                min: 1.0,
                median: 10.0,
                p90: 18.0,
                max: 20.0,
            }
        );
        let one = Summary::of([7.5]).expect("a figure");
        assert_eq!((one.min, one.median, one.p90, one.max), (7.5, 7.5, 7.5, 7.5));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn every_figure_is_in_one_bar() {
        let figures = [912.0, 950.0, 999.9, 1000.0, 1043.0, 1990.0];
        let bars = histogram(&figures);
        assert_eq!(bars.iter().map(|bar| bar.count).sum::<usize>(), figures.len());
        assert_eq!(
            bars[0],
            Bar {
                from: 900.0,
                to: 1000.0,
                count: 3
            }
        );
        assert_eq!(bars[1].count, 2);
        assert_eq!(bars.len(), 11);
        assert!(histogram(&[]).is_empty());
        assert_eq!(histogram(&[5.0, 5.0]).len(), 1);
    }

    #[test]
    fn the_longest_bar_fits_and_the_shortest_is_seen() {
        let bars = [1, 0, 400].map(|count| Bar {
            from: 0.0,
            to: 1.0,
            count,
        });
        let drawn = drawn(&bars);
        let columns: Vec<usize> = drawn.lines().map(|line| line.matches('█').count()).collect();
        assert_eq!(columns, [1, 0, WIDTH]);
    }
}
