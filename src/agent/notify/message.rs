//! What a notification says, in each of its shapes: a line, a mail, JSON.

use super::Untold;
use crate::agent::config::Occasion;
use serde_json::{Value, json};

/// A notification.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// Of this job.
    pub job: &'a str,
    /// This.
    pub what: &'a Untold,
    /// On this host.
    pub host: String,
}

impl<'a> Message<'a> {
    /// Of this job of this host.
    pub fn of(job: &'a str, what: &'a Untold) -> Message<'a> {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Message { job, what, host: host.unwrap_or_else(|| "localhost".to_owned()) }
    }

    /// What a pager shows.
    pub fn subject(&self) -> String {
        format!("blockferry on {}: job {} {}", self.host, self.job, self.what.what.verb())
    }

    /// All of it as a few lines of text.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n\n{}\n\nat: {}\n", self.subject(), self.what.message, time(self.what.at_ms));
        if let Some(run) = &self.what.run_id {
            text.push_str(&format!("run: {run}\n"));
        }
        if self.what.count > 1 {
            text.push_str(&format!("time: {} in a row\n", self.what.count));
        }
        text.push_str(&format!("\nblockferry status {0}\nblockferry history {0}\n", self.job));
        text
    }

    /// All of it as JSON. `text` is what chat services show of a posted object.
    pub fn json(&self) -> Value {
        json!({
            "schema": 1, "program": "blockferry", "version": env!("CARGO_PKG_VERSION"),
            "event": self.what.what, "job": self.job, "host": self.host, "run_id": self.what.run_id,
            "time": time(self.what.at_ms), "time_ms": self.what.at_ms, "count": self.what.count, "exit": self.what.exit,
            "message": self.what.message, "text": format!("{}: {}", self.subject(), self.what.message),
        })
    }

    /// A mail, headers first. Names and addresses are checked by the configuration: no header can be smuggled in.
    pub fn mail(&self, to: &str) -> String {
        let subject: String = self.subject().chars().filter(|letter| letter.is_ascii() && !letter.is_ascii_control()).collect();
        format!(
            "To: {to}\nSubject: {subject}\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{}",
            self.text()
        )
    }
}

impl Occasion {
    /// As in "job db …".
    pub(super) fn verb(self) -> &'static str {
        match self {
            Occasion::Failed => "failed",
            Occasion::Recovered => "recovered",
            Occasion::LagCritical => "is too far behind",
            Occasion::VerifyMismatch => "has a replica that differs",
            Occasion::OperatorNeeded => "needs an operator",
        }
    }
}

/// A time of ours as RFC 3339 in UTC, by the second.
pub fn time(ms: u64) -> String {
    let second = i64::try_from(ms / 1000).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    second.map_or_else(|| format!("{ms} ms"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_says_where_what_and_when() {
        let what = Untold {
            what: Occasion::Failed,
            message: "vg0/db to dr1: no route".into(),
            run_id: Some("r7".into()),
            exit: Some(4),
            count: 2,
            at_ms: 1_700_000_000_123,
            way: String::new(),
        };
        let message = Message { job: "db", what: &what, host: "prod1".into() };
        assert_eq!(message.subject(), "blockferry on prod1: job db failed");
        let mail = message.mail("root");
        assert!(mail.starts_with("To: root\nSubject: blockferry on prod1: job db failed\n"), "{mail}");
        assert!(
            mail.contains(
                "\n\nblockferry on prod1: job db failed\n\nvg0/db to dr1: no route\n\nat: 2023-11-14T22:13:20Z\nrun: r7\ntime: 2 in a row\n"
            ),
            "{mail}"
        );
        let json = message.json();
        assert_eq!((json["event"].as_str(), json["exit"].as_u64(), json["count"].as_u64()), (Some("failed"), Some(4), Some(2)));
        assert_eq!(json["text"], "blockferry on prod1: job db failed: vg0/db to dr1: no route");
    }
}
