//! Counting what happens, where it happens, without a lock: whoever wants to see the numbers reads them while others count on.
//! How they are named and shown is `node::metrics`' business.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// `more` more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

/// Counts as one (or as many as it was made for) until it is dropped.
#[derive(Debug)]
pub struct Held<L: AsRef<Level>> {
    level: L,
    count: u64,
}

impl Level {
    /// There are this many: for what is counted as a whole now and then.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<L: AsRef<Level>> Held<L> {
    /// `count` more, until this is dropped.
    pub fn new(level: L, count: u64) -> Self {
        level.as_ref().0.fetch_add(count, Ordering::Relaxed);
        Self { level, count }
    }
}

impl<L: AsRef<Level>> Drop for Held<L> {
    fn drop(&mut self) {
        self.level.as_ref().0.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl AsRef<Level> for Level {
    fn as_ref(&self) -> &Level {
        self
    }
}

/// One of a closed set of words by which something is counted.
pub trait Label: Copy + 'static {
    /// All of them, each at its [`Label::index`].
    const ALL: &'static [Self];
    /// Its place.
    fn index(self) -> usize;
    /// The word.
    fn text(self) -> &'static str;
}

/// Declares an enum whose variants are words to count by: `enum Kind { Variant = "word", }`.
macro_rules! labels {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $crate::base::count::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn index(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}
pub(crate) use labels;

/// A counter for each word of a set.
#[derive(Debug)]
pub struct Counts<L> {
    counters: Box<[Counter]>,
    labels: PhantomData<fn(L)>,
}

impl<L: Label> Default for Counts<L> {
    fn default() -> Self {
        Self { counters: L::ALL.iter().map(|_| Counter::default()).collect(), labels: PhantomData }
    }
}

impl<L: Label> Counts<L> {
    /// One more of `label`.
    pub fn one(&self, label: L) {
        self.add(label, 1);
    }

    /// `more` more of `label`.
    pub fn add(&self, label: L, more: u64) {
        if let Some(counter) = self.counters.get(label.index()) {
            counter.add(more);
        }
    }

    /// How many of each.
    pub fn values(&self) -> impl Iterator<Item = (L, u64)> {
        L::ALL.iter().zip(&self.counters).map(|(label, counter)| (*label, counter.value()))
    }

    /// How many of `label`.
    pub fn value(&self, label: L) -> u64 {
        self.counters.get(label.index()).map_or(0, Counter::value)
    }
}

/// How often a time, or a size, was at most each of some bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond the last.
    buckets: Box<[Counter]>,
    /// The sum of all, in millionths.
    sum_micros: Counter,
}

/// What a [`Histogram`] has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramValues {
    /// The sum of all that was observed.
    pub sum: f64,
    /// How many were observed.
    pub count: u64,
    /// Each bound, and how many were beyond the one before and not beyond it. The last bound is [`f64::MAX`].
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// An empty one; `bounds` rise.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| Counter::default()).collect(), sum_micros: Counter::default() }
    }

    /// Counts a time, in seconds.
    pub fn observe_time(&self, time: Duration) {
        self.observe_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a size.
    pub fn observe(&self, size: u64) {
        self.observe_micros(size.saturating_mul(1_000_000));
    }

    fn observe_micros(&self, micros: u64) {
        let value = micros as f64 / 1e6;
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.one();
        }
        self.sum_micros.add(micros);
    }

    /// What it has come to.
    pub fn values(&self) -> HistogramValues {
        let bounds = self.bounds.iter().copied().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(Counter::value)).collect();
        HistogramValues {
            sum: self.sum_micros.value() as f64 / 1e6,
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    labels! {
        /// Some words.
        enum Word {
            /// The first.
            One = "one",
            /// The second.
            Two = "two",
        }
    }

    #[test]
    fn each_word_has_a_counter_of_its_own() {
        let counts = Counts::<Word>::default();
        counts.one(Word::Two);
        counts.add(Word::Two, 2);
        let values: Vec<_> = counts.values().map(|(word, count)| (word.text(), count)).collect();
        assert_eq!(values, [("one", 0), ("two", 3)]);
        assert_eq!((counts.value(Word::One), counts.value(Word::Two)), (0, 3));
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let level = std::sync::Arc::new(Level::default());
        let held = Held::new(level.clone(), 3);
        let other = Held::new(&*level, 1);
        assert_eq!(level.value(), 4);
        drop(held);
        assert_eq!(level.value(), 1);
        drop(other);
        assert_eq!(level.value(), 0);
    }

    #[test]
    fn a_histogram_counts_each_observation_in_one_bucket() {
        let histogram = Histogram::new(&[0.001, 0.1]);
        for micros in [1_000, 1_001, 100_000, 100_001] {
            histogram.observe_time(Duration::from_micros(micros));
        }
        let values = histogram.values();
        assert_eq!(values.buckets, [(0.001, 1), (0.1, 2), (f64::MAX, 1)]);
        assert_eq!((values.count, values.sum), (4, 0.202_002));
    }
}
