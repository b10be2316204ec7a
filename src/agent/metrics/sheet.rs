//! Families of samples, and how they are written.

use std::fmt::Write;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What it is called.
    pub name: &'static str,
    /// What it is of.
    pub labels: Vec<(&'static str, String)>,
    /// How much.
    pub value: f64,
}

/// All figures of one moment, family by family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sheet {
    families: Vec<Family>,
}

#[derive(Clone, Debug, PartialEq)]
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
}

impl Sheet {
    /// Begins a family; the samples that follow are its own.
    pub fn family(&mut self, name: &'static str, help: &'static str) {
        self.families.push(Family { name, help, samples: Vec::new() });
    }

    /// Adds a sample to the family begun last.
    pub fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        if let Some(family) = self.families.last_mut() {
            let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
            family.samples.push(Sample { name: family.name, labels, value });
        }
    }

    /// Every sample.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.families.iter().flat_map(|family| &family.samples)
    }

    /// The text format of Prometheus, version 0.0.4. A family without a sample is left out.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for family in self.families.iter().filter(|family| !family.samples.is_empty()) {
            let kind = if family.name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", family.name, family.help, family.name);
            for sample in &family.samples {
                let labels: Vec<String> = sample.labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
                let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
                let _ = writeln!(text, "{}{labels} {}", sample.name, sample.value);
            }
        }
        text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_letters_stay_within_their_quotes() {
        let mut sheet = Sheet::default();
        sheet.family("a_total", "Things.");
        sheet.add(&[("job", "x\"} 1\n\\")], 0.5);
        sheet.family("b_seconds", "Left out.");
        sheet.family("c_bytes", "Bytes.");
        sheet.add(&[], 1_795_780_800_123.0);
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{job=\"x\\\"} 1\\n\\\\\"} 0.5\n\
                        # HELP c_bytes Bytes.\n# TYPE c_bytes gauge\nc_bytes 1795780800123\n";
        assert_eq!(sheet.text(), expected);
    }
}
