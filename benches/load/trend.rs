//! Whether a figure grows: a straight line through its samples.

/// The line that least squares lay through samples, over the time from the first to the last of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// The mean.
    pub level: f64,
    /// How much higher the line ends than it begins.
    pub rise: f64,
    /// The standard error of `rise`: how much of it chance may make.
    pub noise: f64,
}

impl Trend {
    /// Fewer samples tell nothing.
    const SAMPLES: usize = 10;

    /// Of samples, each a time and a figure; `None` where they are too few for a judgement.
    pub fn of(samples: &[(f64, f64)]) -> Option<Self> {
        let (first, last) = (samples.first()?.0, samples.last()?.0);
        if samples.len() < Self::SAMPLES || last <= first {
            return None;
        }
        let count = samples.len() as f64;
        let mean_time = samples.iter().map(|&(time, _)| time).sum::<f64>() / count;
        let level = samples.iter().map(|&(_, figure)| figure).sum::<f64>() / count;
        let spread: f64 = samples.iter().map(|&(time, _)| (time - mean_time).powi(2)).sum();
        let slope = samples.iter().map(|&(time, figure)| (time - mean_time) * (figure - level)).sum::<f64>() / spread;
        let off = |&(time, figure): &(f64, f64)| (figure - level - slope * (time - mean_time)).powi(2);
        let error = (samples.iter().map(off).sum::<f64>() / (count - 2.0) / spread).sqrt();
        let time = last - first;
        Some(Self { level, rise: slope * time, noise: error * time })
    }

    /// The rise as a share of the level.
    pub fn share(&self) -> f64 {
        self.rise / self.level
    }

    /// It rises by more than this share of the level, and not by chance. What falls does not grow.
    pub fn grows(&self, share: f64) -> bool {
        self.rise > share * self.level && self.rise > 3.0 * self.noise
    }
}
