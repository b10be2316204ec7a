//! When something is due: calendars, windows of the day, limits by the hour, back-off. Pure functions of
//! times and zones; nothing here looks at a clock or sleeps.

pub mod bandwidth;
pub mod calendar;
pub mod cron;
pub mod days;
mod pattern;
pub mod window;

pub use bandwidth::Table;
pub use calendar::Calendar;
pub use cron::Cron;
pub use days::Days;
pub use window::Window;

#[cfg(test)]
pub(crate) mod testing {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    /// A zone with summer time that needs no tables of the system.
    pub fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("the rule of Central Europe")
    }

    /// `2026-11-24 12:00` as the clocks of Berlin show it.
    pub fn time(text: &str) -> Timestamp {
        let civil: jiff::civil::DateTime = text.parse().expect("a time");
        berlin().to_timestamp(civil).expect("a time of our days")
    }

    /// A zone of the system's tables; `None` on a machine without them, which says that much is not tried.
    pub fn known_zone(name: &str) -> Option<TimeZone> {
        let zone = TimeZone::get(name);
        if let Err(error) = &zone {
            assert!(std::env::var_os("CI").is_none(), "{error}: install the package tzdata");
            eprintln!("skipped: {error}");
        }
        zone.ok()
    }

    /// The ticks behind a moment in November, as the golden files have them.
    pub fn six_ticks(next: impl Fn(Timestamp) -> Option<Timestamp>) -> String {
        let base: Timestamp = "2026-11-24T12:00:30Z".parse().expect("a time");
        let ticks = std::iter::successors(next(base), |tick| next(*tick));
        ticks.take(6).map(|tick| tick.to_string()).collect::<Vec<_>>().join(" ")
    }
}
