//! When something is due: calendars, windows of the day, back-off. Pure functions of times; nothing here
//! looks at a clock or sleeps.
