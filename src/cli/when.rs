//! How times are printed: on the clock of this host with its zone for people, RFC 3339 in UTC for programs.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

/// `2026-11-24T12:00:00Z`.
pub fn utc(ms: u64) -> String {
    format!("{:.0}", instant(ms))
}

/// The same, or null.
pub fn utc_or_null(ms: Option<u64>) -> Value {
    ms.map_or(Value::Null, |ms| utc(ms).into())
}

/// Makes keys that hold moments in milliseconds RFC 3339, under their name without the unit. Lengths stay as they are.
pub fn moments(value: &mut Value) {
    const MOMENTS: [&str; 6] = ["source_time_ms", "unchanged_ms", "since_ms", "until_ms", "started_ms", "finished_ms"];
    match value {
        Value::Object(map) => {
            for moment in MOMENTS {
                if let Some(ms) = map.remove(moment) {
                    map.insert(moment.trim_end_matches("_ms").to_owned(), utc_or_null(ms.as_u64()));
                }
            }
            map.values_mut().for_each(moments);
        }
        Value::Array(values) => values.iter_mut().for_each(moments),
        _ => {}
    }
}

/// `2026-11-24 13:00:00 CET`.
pub fn local(ms: u64, zone: &TimeZone) -> String {
    instant(ms).to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// `13:00:00 CET` of today, otherwise with its date.
pub fn soon(ms: u64, now_ms: u64, zone: &TimeZone) -> String {
    let (at, now) = (instant(ms).to_zoned(zone.clone()), instant(now_ms).to_zoned(zone.clone()));
    if at.date() == now.date() { at.strftime("%H:%M:%S %Z").to_string() } else { local(ms, zone) }
}

fn instant(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default()
}
