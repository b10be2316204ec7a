//! `blockferry doctor`: what killed or abandoned runs left, and what to do about it.

use super::arguments::{Common, DoctorOptions};
use super::clone::state_dir;
use super::output::Output;
use crate::attempt::doctor::{self, Leftover, Treatment};
use crate::error::{Error, Kind, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};

/// Lists every leftover; with `--fix` sees to what is safe.
pub fn run(common: &Common, options: &DoctorOptions, output: &Output) -> Result<()> {
    let state = state_dir(common)?;
    let treatment = Treatment { fix: options.fix, drop_journals: options.drop_journals };
    let found = doctor::examine(&state, treatment, common.io.into())?;
    found.busy.iter().for_each(|busy| show_busy(busy, output));
    found.fixed.iter().for_each(|fixed| show_fixed(fixed, output));
    found.failures.iter().for_each(|failure| output.warn(failure));
    found.leftovers.iter().for_each(|leftover| show_leftover(leftover, output));
    let (left, fixable) = (found.leftovers.len(), found.leftovers.iter().filter(|leftover| leftover.fixable).count());
    output.line(|| {
        json!({
            "type": "summary", "command": "doctor", "state": state.path(), "leftovers": left, "fixable": fixable,
            "fixed": found.fixed.len(), "failures": found.failures, "busy": found.busy.len(),
        })
    });
    if left == 0 {
        output.text(format!("nothing is left over in {}", state.path().display()));
        return Ok(());
    }
    let hint = if fixable > 0 && !options.fix { format!("; `blockferry doctor --fix` sees to {fixable} of them") } else { String::new() };
    let things = if left == 1 { "thing is" } else { "things are" };
    Err(Error::new(Kind::Failed, format!("{left} {things} left over in {}{hint}", state.path().display())))
}

fn show_busy(busy: &str, output: &Output) {
    output.line(|| json!({"type": "busy", "message": busy}));
    output.text(format!("passed over: {busy}"));
}

fn show_fixed(fixed: &Leftover, output: &Output) {
    output.line(|| described("fixed", fixed));
    output.text(format!("done: {}: {}", fixed.place.display(), fixed.story));
}

fn show_leftover(leftover: &Leftover, output: &Output) {
    output.line(|| described("leftover", leftover));
    output.text(format!("{} ({}): {}", leftover.place.display(), HumanBytes(leftover.bytes), leftover.story));
    output.text(format!("    → {}", leftover.remedy));
}

/// The leftover itself, as a line of this type.
fn described(kind: &str, leftover: &Leftover) -> Value {
    let mut line = json!(leftover);
    line["type"] = kind.into();
    line
}
