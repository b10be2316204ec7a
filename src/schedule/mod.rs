//! When something is due: calendars, windows of the day, limits by the hour, back-off. Pure functions of
//! times and zones; nothing here looks at a clock or sleeps.

pub mod bandwidth;
pub mod days;
pub mod window;

pub use bandwidth::Table;
pub use days::Days;
pub use window::Window;

#[cfg(test)]
mod testing {
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
}
