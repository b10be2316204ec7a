//! receiver.toml: what the receiver serves, and to whom. What is read here is valid, or an error that
//! names file and line.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{
    HANDSHAKE_TIMEOUT, HANDSHAKES_LIMIT, HANDSHAKES_MAX, JOURNAL_MAX_MIN_BYTES, LANES_ALL, LANES_LIMIT, SESSIONS_LIMIT, SESSIONS_MAX,
    STALL_TIMEOUT, STALL_TIMEOUT_MIN,
};
use crate::pin::Pin;
use crate::receiver::Apply;
use crate::schedule::Table;
use crate::settings::amount::exact;
use crate::settings::{Share, Size, check_name, duration, matches, parse};
use crate::state::journals::Journals;
use serde::{Deserialize, Serialize};
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
    /// Time without progress after which a session is given up.
    #[serde(default = "default_stall", with = "duration")]
    pub stall_timeout: Duration,
    /// How fast the bytes of all sessions together may move.
    #[serde(default, skip_serializing_if = "Table::is_unlimited")]
    pub bandwidth: Table,
    /// Connections without a proven key at once.
    #[serde(default = "default_handshakes_max")]
    pub handshakes_max: usize,
    /// Sessions at once.
    #[serde(default = "default_sessions_max")]
    pub sessions_max: usize,
    /// Further connections of all sessions together.
    #[serde(default = "default_connections_max")]
    pub connections_max: usize,
    /// Where deltas are kept until they are whole.
    #[serde(default, skip_serializing_if = "JournalEntry::is_default")]
    pub journal: JournalEntry,
    /// What is served.
    #[serde(default, rename = "replica")]
    pub replicas: Vec<ReplicaEntry>,
    /// To whom, beside those that `pair` enrolled.
    #[serde(default, rename = "client")]
    pub clients: Vec<ClientEntry>,
}

/// Where journals lie, and how much they may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalEntry {
    /// The folder; else each lies beside its replica's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// What all of them together may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Size>,
    /// What stays free on their file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Share>,
}

impl JournalEntry {
    fn is_default(&self) -> bool {
        *self == JournalEntry::default()
    }

    fn check(&self) -> Result<(), String> {
        if let Some(dir) = self.dir.as_ref().filter(|dir| !dir.is_absolute()) {
            return Err(format!("journal.dir: {} is not an absolute path", dir.display()));
        }
        if self.max.is_some_and(|max| max.0 < JOURNAL_MAX_MIN_BYTES) {
            return Err(format!("journal.max must be {} at least: a frame has to fit", exact(JOURNAL_MAX_MIN_BYTES)));
        }
        if self.reserve == Some(Share::Percent(100)) {
            return Err("journal.reserve = \"100%\" leaves no room for any journal".to_owned());
        }
        Ok(())
    }
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
    /// How increments reach the device.
    #[serde(default)]
    pub apply: Apply,
    /// The device refuses writes between sessions.
    #[serde(default)]
    pub readonly: bool,
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
    /// How fast the bytes of its sessions together may move.
    #[serde(default, skip_serializing_if = "Table::is_unlimited")]
    pub bandwidth: Table,
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

fn default_stall() -> Duration {
    STALL_TIMEOUT
}

fn default_handshakes_max() -> usize {
    HANDSHAKES_MAX
}

fn default_sessions_max() -> usize {
    SESSIONS_MAX
}

fn default_connections_max() -> usize {
    LANES_ALL
}

fn default_operations() -> Vec<Operation> {
    vec![Operation::Push, Operation::Verify]
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
        let config: ReceiverConfig = parse(text, name)?;
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
        self.journal.check()?;
        if self.sessions_max == 0 || self.handshakes_max == 0 || self.handshake_timeout.is_zero() {
            return Err("sessions_max, handshakes_max and handshake_timeout must not be zero".to_owned());
        }
        if self.sessions_max > SESSIONS_LIMIT || self.handshakes_max > HANDSHAKES_LIMIT || self.connections_max > LANES_LIMIT {
            return Err(format!(
                "sessions_max is {SESSIONS_LIMIT} at most, handshakes_max {HANDSHAKES_LIMIT}, connections_max {LANES_LIMIT}"
            ));
        }
        if self.stall_timeout < STALL_TIMEOUT_MIN {
            return Err(format!("stall_timeout must be {} s at least: a busy peer says so every two", STALL_TIMEOUT_MIN.as_secs()));
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
        let direct = |replica: &&ReplicaEntry| replica.apply == Apply::Direct;
        let torn = |replica: &ReplicaEntry| {
            format!(
                "replica \"{}\": apply = \"direct\": while an increment is under way, and after one that was cut until a run completes it, it is no complete generation and cannot be promoted",
                replica.name
            )
        };
        let open = |replica: &&ReplicaEntry| replica.readonly && replica.device.is_made();
        let moot = |replica: &ReplicaEntry| {
            format!("replica \"{}\": readonly does nothing for an image file: only block devices refuse writes", replica.name)
        };
        let all = &self.replicas;
        let words = all.iter().filter(unstable).map(word).chain(all.iter().filter(direct).map(torn));
        words.chain(all.iter().filter(open).map(moot)).collect()
    }

    /// The same for those who make journals.
    pub fn journals(&self) -> Journals {
        let JournalEntry { dir, max, reserve } = self.journal.clone();
        Journals { dir, max: max.map(|max| max.0), reserve, configured: true }
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
        assert_eq!(config.journals().max, Some(200 << 30));
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
        assert!(said.starts_with("r.toml:24: unknown field `session_max`"), "{said}");
        assert!(said.ends_with("did you mean `sessions_max`?"), "{said}");
        assert!(example("{ lv =", "{ lw =").contains("did you mean `lv`?"));
        assert!(example("\"push\"", "\"psh\"").contains("did you mean `push`?"));
        assert!(example("\"10s\"", "\"10 apples\"").contains("r.toml:11: \"10 apples\" is no time"));
        assert!(example("sessions_max = 256", "sessions_max = 100000").contains("sessions_max is 4096 at most"));
        assert!(example("connections_max = 64", "connections_max = 5000").contains("connections_max 4096"));
        assert!(example("sha256:e3", "sha256:e").contains("is no pin"));
        assert!(example("name = \"web\"", "name = \"db-log\"").contains("two replicas are called \"db-log\""));
        assert!(example("vgdr/db-data", "db-data").contains("is not of the form \"vg/name\""));
        assert!(example("vgdr/db-data", "../sda").contains("is not of the form \"vg/name\""));
        assert!(example("/srv/replicas/web.img", "/dev/sda").contains("is no place for an image file"));
        assert!(example("name = \"web\"", "name = \"a b\"").contains("make a name"));
        assert!(example("\"/var/lib/blockferry/journal\"", "\"journal\"").contains("is not an absolute path"));
        assert!(example("200GiB", "200KiB").contains("journal.max must be 16MiB at least"));
        assert!(example("\"10%\"", "\"100%\"").contains("no room for any journal"));
        assert!(example("reserve =", "reserved =").contains("did you mean `reserve`?"));
    }

    #[test]
    fn a_bare_disk_name_gets_a_warning() {
        let text = "[[replica]]\nname = \"x\"\ndevice = { path = \"/dev/sdb\" }\n";
        let warnings = ReceiverConfig::parse(text, "x").unwrap().warnings();
        assert!(warnings[0].contains("/dev/disk/by-id"), "{warnings:?}");
    }

    #[test]
    fn readonly_on_an_image_file_gets_a_warning() {
        let text = |device: &str| format!("[[replica]]\nname = \"x\"\ndevice = {{ {device} }}\nreadonly = true\n");
        let warnings = |device: &str| ReceiverConfig::parse(&text(device), "x").unwrap().warnings();
        assert_eq!(warnings("lv = \"vg/x\""), Vec::<String>::new());
        assert!(warnings("file = \"/srv/x.img\"")[0].contains("does nothing for an image file"));
    }

    #[test]
    fn a_way_to_apply_is_one_that_is_built_and_the_direct_one_gets_a_warning() {
        let text = |apply: &str| format!("[[replica]]\nname = \"x\"\ndevice = {{ lv = \"vg/x\" }}\napply = \"{apply}\"\n");
        let said = |apply: &str| ReceiverConfig::parse(&text(apply), "x").unwrap_err().chain();
        assert!(said("snapshot").starts_with("x:4: apply = \"snapshot\" is not built yet: auto, journal or direct"));
        assert!(said("jurnal").contains("is no way to apply increments: auto, journal or direct"));
        for (apply, warnings) in [("auto", 0), ("journal", 0), ("direct", 1)] {
            let config = ReceiverConfig::parse(&text(apply), "x").unwrap();
            assert_eq!((config.replicas[0].apply.to_string().as_str(), config.warnings().len()), (apply, warnings));
        }
    }
}
