//! receiver.toml: what the receiver serves, and to whom. What is read here is valid, or an error that
//! names file and line.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, SESSIONS_MAX};
use crate::pin::Pin;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where it lies unless `--config` says otherwise.
pub const RECEIVER_TOML: &str = "/etc/blockferry/receiver.toml";

/// A full one with comments: docs/examples/receiver.toml.
pub const EXAMPLE: &str = include_str!("../../docs/examples/receiver.toml");

/// What the receiver serves, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverConfig {
    /// `ADDRESS` or `ADDRESS:PORT`.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// The state directory; `--state-dir` goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Time for a TLS handshake, and again until the first frame.
    #[serde(default = "default_handshake", with = "duration")]
    pub handshake_timeout: Duration,
    /// Connections without a proven key at once.
    #[serde(default = "default_handshakes_max")]
    pub handshakes_max: usize,
    /// Sessions at once.
    #[serde(default = "default_sessions_max")]
    pub sessions_max: usize,
    /// What is served.
    #[serde(default, rename = "replica")]
    pub replicas: Vec<ReplicaEntry>,
    /// To whom, beside those that `pair` enrolled.
    #[serde(default, rename = "client")]
    pub clients: Vec<ClientEntry>,
}

/// A name and the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaEntry {
    /// What clients call it.
    pub name: String,
    /// What it is.
    pub device: Device,
    /// Whether a client may give its content up.
    #[serde(default)]
    pub overwrite: bool,
}

/// The device of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Device {
    /// A logical volume as `vg/name`.
    Lv(String),
    /// A block device by its path.
    Path(PathBuf),
    /// An image file, made at the first copy.
    File(PathBuf),
}

impl Device {
    /// Where it is on this host.
    pub fn path(&self) -> PathBuf {
        match self {
            Device::Lv(name) => Path::new("/dev").join(name),
            Device::Path(path) | Device::File(path) => path.clone(),
        }
    }

    /// Whether it is made where it does not exist.
    pub fn is_made(&self) -> bool {
        matches!(self, Device::File(_))
    }
}

/// A key and what its holder may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientEntry {
    /// How the log calls it.
    pub name: String,
    /// The key it has to prove; none for one that comes through ssh alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Pin>,
    /// What it may do.
    pub allow: Vec<Grant>,
}

/// Operations on replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Their names; `*` stands for anything.
    pub replica: String,
    /// What may be done.
    #[serde(default = "default_operations")]
    pub ops: Vec<Operation>,
}

/// What a client may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// New generations, and finding out what they would take.
    Push,
    /// Comparing.
    Verify,
}

impl Grant {
    /// Everything that `pair invite` gives on these replicas.
    pub fn all(replica: &str) -> Grant {
        Grant { replica: replica.to_owned(), ops: default_operations() }
    }

    /// Whether it covers this.
    pub fn covers(&self, replica: &str, operation: Operation) -> bool {
        matches(&self.replica, replica) && self.ops.contains(&operation)
    }
}

fn default_listen() -> String {
    "0.0.0.0".to_owned()
}

fn default_handshake() -> Duration {
    HANDSHAKE_TIMEOUT
}

fn default_handshakes_max() -> usize {
    HANDSHAKES_MAX
}

fn default_sessions_max() -> usize {
    SESSIONS_MAX
}

fn default_operations() -> Vec<Operation> {
    vec![Operation::Push, Operation::Verify]
}

/// `*` stands for any characters, also none; everything else for itself.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    // What the next literal piece may begin behind: every place, the nearest first.
    name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
}

impl ReceiverConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<ReceiverConfig> {
        let hint = || format!("read {} (`blockferry config example --receiver` prints one to begin with)", path.display());
        let text = std::fs::read_to_string(path).context(Kind::Usage, hint)?;
        ReceiverConfig::parse(&text, &path.display().to_string())
    }

    /// Reads and checks the text of a file called `name`.
    pub fn parse(text: &str, name: &str) -> Result<ReceiverConfig> {
        let config: ReceiverConfig = toml::from_str(text).map_err(|error| explain(&error, text, name))?;
        config.check().map_err(|what| Error::new(Kind::Usage, format!("{name}: {what}")))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let (mut names, mut devices, mut clients, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for replica in &self.replicas {
            let name = &replica.name;
            check_name("replica", name)?;
            if !names.insert(name) {
                return Err(format!("two replicas are called \"{name}\""));
            }
            let path = replica.device.path();
            match &replica.device {
                Device::Lv(lv)
                    if lv.split('/').filter(|part| !part.is_empty() && *part != "..").count() != 2 || lv.matches('/').count() != 1 =>
                {
                    return Err(format!("replica \"{name}\": lv = \"{lv}\" is not of the form \"vg/name\""));
                }
                Device::File(_) if path.starts_with("/dev") => {
                    return Err(format!(
                        "replica \"{name}\": {} is no place for an image file: device = {{ path = … }} names a device",
                        path.display()
                    ));
                }
                _ if !path.is_absolute() => return Err(format!("replica \"{name}\": {} is not an absolute path", path.display())),
                _ => {}
            }
            if !devices.insert(path.clone()) {
                return Err(format!("replica \"{name}\": {} is another replica's device already", path.display()));
            }
        }
        for client in &self.clients {
            check_name("client", &client.name)?;
            if !clients.insert(&client.name) {
                return Err(format!("two clients are called \"{}\"", client.name));
            }
            if client.key.is_some_and(|key| !keys.insert(key)) {
                return Err(format!("client \"{}\": its key is another client's already", client.name));
            }
        }
        if self.sessions_max == 0 || self.handshakes_max == 0 || self.handshake_timeout.is_zero() {
            return Err("sessions_max, handshakes_max and handshake_timeout must not be zero".to_owned());
        }
        Ok(())
    }

    /// What is allowed but deserves a word.
    pub fn warnings(&self) -> Vec<String> {
        let unstable = |replica: &&ReplicaEntry| is_unstable(&replica.device.path());
        let word = |replica: &ReplicaEntry| {
            let path = replica.device.path();
            format!("replica \"{}\": {} may be another disk after the next boot: name it by /dev/disk/by-id", replica.name, path.display())
        };
        self.replicas.iter().filter(unstable).map(word).collect()
    }

    /// The replica of this name.
    pub fn replica(&self, name: &str) -> Option<&ReplicaEntry> {
        self.replicas.iter().find(|replica| replica.name == name)
    }

    /// What is in effect, as a file.
    pub fn show(&self) -> Result<String> {
        toml::to_string(self).context(Kind::Failed, || "write the configuration")
    }
}

/// Whether names like this one go by the order in which disks are found.
fn is_unstable(path: &Path) -> bool {
    let Some(name) = path.strip_prefix("/dev").ok().and_then(Path::to_str) else { return false };
    ["sd", "vd", "xvd", "hd", "nvme", "loop"].iter().any(|prefix| name.starts_with(prefix)) && !name.contains('/')
}

/// Names appear in logs and on command lines.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with(['-', '.']) {
        return Ok(());
    }
    Err(format!("{what} name {name:?}: letters, digits, '.', '_' and '-' make a name, 64 at most"))
}

/// File, line, what is wrong, and what was probably meant.
fn explain(error: &toml::de::Error, text: &str, name: &str) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let meant = match quoted.next() {
        Some(wrong) if message.starts_with("unknown ") => {
            let near = quoted.map(|word| (distance(wrong, word), word)).min().filter(|(far, word)| *far <= 1 + word.len() / 4);
            near.map_or(String::new(), |(_, word)| format!(": did you mean `{word}`?"))
        }
        _ => String::new(),
    };
    Error::new(Kind::Usage, format!("{name}:{line}: {message}{meant}"))
}

/// Letters to insert, remove or change to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.pop().unwrap_or_default()
}

/// `10s`, `500ms`, `2min`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[at..] {
        "ms" => 1,
        "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("\"{text}\" is no time: a number and ms, s, min, h or d")),
    };
    let number = text[..at].parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.map(Duration::from_millis).ok_or_else(|| format!("\"{text}\" is no time"))
}

mod duration {
    use super::*;

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", time.as_millis()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid_and_survives_being_shown() {
        let config = ReceiverConfig::parse(EXAMPLE, "example").unwrap();
        assert_eq!((config.replicas.len(), config.clients.len()), (3, 1));
        assert_eq!(config.replicas[0].device.path(), Path::new("/dev/vgdr/db-data"));
        assert!(config.warnings().is_empty());
        assert_eq!(ReceiverConfig::parse(&config.show().unwrap(), "shown").unwrap(), config);
        let least = ReceiverConfig::parse("", "empty").unwrap();
        assert_eq!((least.handshake_timeout, least.sessions_max), (HANDSHAKE_TIMEOUT, SESSIONS_MAX));
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_what_was_meant() {
        let example = |from: &str, to: &str| {
            assert!(EXAMPLE.contains(from), "{from}");
            ReceiverConfig::parse(&EXAMPLE.replacen(from, to, 1), "r.toml").unwrap_err().chain()
        };
        let said = example("sessions_max", "session_max");
        assert!(said.starts_with("r.toml:17: unknown field `session_max`"), "{said}");
        assert!(said.ends_with("did you mean `sessions_max`?"), "{said}");
        assert!(example("{ lv =", "{ lw =").contains("did you mean `lv`?"));
        assert!(example("\"push\"", "\"psh\"").contains("did you mean `push`?"));
        assert!(example("\"10s\"", "\"10 apples\"").contains("r.toml:11: \"10 apples\" is no time"));
        assert!(example("sha256:e3", "sha256:e").contains("is no pin"));
        assert!(example("name = \"web\"", "name = \"db-log\"").contains("two replicas are called \"db-log\""));
        assert!(example("vgdr/db-data", "db-data").contains("is not of the form \"vg/name\""));
        assert!(example("vgdr/db-data", "../sda").contains("is not of the form \"vg/name\""));
        assert!(example("/srv/replicas/web.img", "/dev/sda").contains("is no place for an image file"));
        assert!(example("name = \"web\"", "name = \"a b\"").contains("make a name"));
    }

    #[test]
    fn a_bare_disk_name_gets_a_warning() {
        let text = "[[replica]]\nname = \"x\"\ndevice = { path = \"/dev/sdb\" }\n";
        let warnings = ReceiverConfig::parse(text, "x").unwrap().warnings();
        assert!(warnings[0].contains("/dev/disk/by-id"), "{warnings:?}");
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in
            [("db-*", "db-data"), ("db-*", "db-"), ("*", ""), ("*", "x"), ("a*b*c", "aXbYc"), ("a*b*c", "abbc"), ("x", "x")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("db-*", "db"), ("db-*", "xdb-data"), ("a*b", "abc"), ("", "x"), ("x", "xy"), ("*é", "e")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
