//! Time as the protocol writes it. The pure layers take a [`UnixMillis`]; only `service`, `node` and `client` read a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The system clock's time. A clock set before 1970 reads as 0.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        #[cfg(feature = "fault-points")]
        let now = Self(now.0.saturating_add_signed(super::fault_points::clock_offset_ms()));
        now
    }

    /// Whole seconds since the epoch, rounded down.
    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// `self + by`, at most the largest representable time.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// `self - by`, at least 0.
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// As a person and most programs read it: RFC 3339 in UTC, with milliseconds.
    pub fn to_rfc3339(self) -> String {
        let time = i64::try_from(self.seconds()).ok().and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
        // Beyond the year 9999 the calendar of RFC 3339 ends.
        let Some(time) = time else { return "9999-12-31T23:59:59.999Z".to_owned() };
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second) = time.to_hms();
        format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", u8::from(month), self.0 % 1000)
    }

    /// How far apart two times are, whichever is earlier.
    pub fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_says() {
        assert_eq!(UnixMillis(0).to_rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMillis(1_709_210_096_007).to_rfc3339(), "2024-02-29T12:34:56.007Z");
        assert_eq!(UnixMillis(u64::MAX).to_rfc3339(), "9999-12-31T23:59:59.999Z");
    }
}
