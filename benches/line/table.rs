//! What came of each row: printed when it is known, all of it again at the end, or as JSON lines.

use serde_json::json;

/// What a figure has to be.
#[derive(Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Nothing was promised; the figure is there to look at.
    Open,
}

impl Goal {
    fn is_met(self, figure: f64) -> Option<bool> {
        match self {
            Goal::AtMost(limit) => Some(figure <= limit),
            Goal::AtLeast(limit) => Some(figure >= limit),
            Goal::Open => None,
        }
    }

    fn text(self) -> String {
        match self {
            Goal::AtMost(limit) => format!("<= {limit}"),
            Goal::AtLeast(limit) => format!(">= {limit}"),
            Goal::Open => "-".to_owned(),
        }
    }
}

/// The median of some rounds, and how far they lay apart.
#[derive(Clone, Copy)]
pub struct Figures {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Figures {
    pub fn of(mut rounds: Vec<f64>) -> Figures {
        rounds.sort_by(f64::total_cmp);
        Figures { median: rounds[rounds.len() / 2], min: rounds[0], max: rounds[rounds.len() - 1] }
    }
}

struct Row {
    name: &'static str,
    what: String,
    goal: Goal,
    result: Result<Figures, String>,
}

/// The rows so far.
pub struct Table {
    rows: Vec<Row>,
    json: bool,
    /// Of the command line: rows whose name does not begin with one of these are left out.
    only: Vec<String>,
}

impl Table {
    pub fn new(json: bool, only: Vec<String>) -> Table {
        let table = Table { rows: Vec::new(), json, only };
        if !json {
            println!("{}", Table::head());
        }
        table
    }

    /// Whether any of these rows was asked for.
    pub fn wants(&self, names: &[&str]) -> bool {
        self.only.is_empty() || names.iter().any(|name| self.only.iter().any(|only| only == name))
    }

    pub fn figures(&mut self, name: &'static str, what: impl Into<String>, goal: Goal, figures: Figures) {
        self.add(Row { name, what: what.into(), goal, result: Ok(figures) });
    }

    pub fn figure(&mut self, name: &'static str, what: impl Into<String>, goal: Goal, figure: f64) {
        self.figures(name, what, goal, Figures { median: figure, min: figure, max: figure });
    }

    pub fn skipped(&mut self, name: &'static str, what: impl Into<String>, goal: Goal, why: impl Into<String>) {
        self.add(Row { name, what: what.into(), goal, result: Err(why.into()) });
    }

    fn add(&mut self, row: Row) {
        if self.json {
            println!("{}", row.json());
        } else {
            println!("{}", row.line());
        }
        self.rows.push(row);
    }

    fn head() -> String {
        format!("{:<4} {:<78} {:>8} {:>8} {:>8}  {:>8}", "row", "what (ours / the other's)", "median", "min", "max", "goal")
    }

    /// All of it once more: what scrolled by lies between other words.
    pub fn finish(&self) {
        if self.json {
            return;
        }
        println!("\n{}", Table::head());
        self.rows.iter().for_each(|row| println!("{}", row.line()));
        let judged = |wanted| self.rows.iter().filter(|row| row.is_met() == Some(wanted)).count();
        let skipped = self.rows.iter().filter(|row| row.result.is_err()).count();
        println!("{} met, {} not met, {skipped} skipped", judged(true), judged(false));
    }
}

impl Row {
    fn is_met(&self) -> Option<bool> {
        self.result.as_ref().ok().and_then(|figures| self.goal.is_met(figures.median))
    }

    fn line(&self) -> String {
        let front = format!("{:<4} {:<78}", self.name, self.what);
        let goal = self.goal.text();
        match &self.result {
            Ok(figures) => {
                let verdict = self.is_met().map_or("", |met| if met { "met" } else { "NOT MET" });
                format!("{front} {:>8.3} {:>8.3} {:>8.3}  {goal:>8} {verdict}", figures.median, figures.min, figures.max)
            }
            Err(why) => format!("{front} {:>8} {:>8} {:>8}  {goal:>8} skipped: {why}", "", "", ""),
        }
    }

    fn json(&self) -> serde_json::Value {
        let figures = self.result.as_ref().ok();
        json!({
            "type": "row", "row": self.name, "what": self.what, "goal": self.goal.text(), "met": self.is_met(),
            "median": figures.map(|f| f.median), "min": figures.map(|f| f.min), "max": figures.map(|f| f.max),
            "skipped": self.result.as_ref().err(),
        })
    }
}
