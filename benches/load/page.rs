//! What a gateway's page of metrics says.

/// The sum of a metric's samples; `None` where the page has none.
pub fn total(page: &str, metric: &str) -> Option<f64> {
    samples(page, metric).fold(None, |sum, (_, sample)| Some(sum.unwrap_or(0.0) + sample))
}

/// A metric's samples: their labels as they stand, and their values.
fn samples<'a>(page: &'a str, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
    })
}

/// A histogram: for each bound, how many samples did not exceed it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// Of this name, all its labels together.
    pub fn read(page: &str, name: &str) -> Self {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, count) in samples(page, &format!("{name}_bucket")) {
            let bound = labels.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"'));
            let Some(Ok(bound)) = bound.map(|(bound, _)| bound.replace("+Inf", "inf").parse::<f64>()) else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        Self(buckets)
    }

    /// What has come since an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| earlier.0.iter().find(|(known, _)| *known == bound).map_or(0.0, |bucket| bucket.1);
        Self(self.0.iter().map(|&(bound, count)| (bound, count - before(bound))).collect())
    }

    /// The figure that this share of the samples did not exceed, as if those of a bucket were spread evenly over it;
    /// `None` without samples.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let rank = share * self.0.last().filter(|(_, all)| *all > 0.0)?.1;
        let place = self.0.iter().position(|(_, count)| *count >= rank)?;
        let (bound, count) = self.0[place];
        let (lower, below) = if place == 0 { (0.0, 0.0) } else { self.0[place - 1] };
        if bound.is_infinite() {
            return Some(lower);
        }
        Some(lower + (bound - lower) * (rank - below) / (count - below))
    }
}
