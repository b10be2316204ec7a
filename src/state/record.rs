//! The record of one half of a relationship: a small readable file, replaced as a whole, with a check
//! in its first line. It is the truth about which generation is committed.

use super::{Files, RECORD};
use crate::digest::{Algorithm, Digest, SECRET_BYTES, Secret};
use crate::error::{Context, Error, Kind, Result};
use crate::extent::Geometry;
use crate::format::codec::crc;
use crate::identity::Identity;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// How far a replica is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Stage {
    /// The first copy is under way: the device is no complete generation yet.
    Initializing,
    /// The device is exactly the committed generation.
    Clean,
    /// The sealed journal is being written onto the device; only its completion leads on.
    Applying {
        /// The generation it makes.
        generation: u64,
        /// The root it makes.
        #[serde(with = "hex_digest")]
        root: Digest,
        /// When that generation's snapshot was taken: milliseconds since 1970.
        source_time_ms: u64,
    },
}

/// A replica that was made usable in its own right: its history goes on without its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The epoch it grew from.
    pub from_epoch: Uuid,
    /// The generation of that epoch that it grew from.
    pub from_generation: u64,
    /// When: milliseconds since 1970.
    pub time_ms: u64,
}

/// What the receiver remembers of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Identity of the relationship.
    pub relationship: Uuid,
    /// The epoch of the committed generation.
    pub epoch: Uuid,
    /// The committed generation, 0 for none.
    pub generation: u64,
    /// Its root.
    #[serde(with = "hex_digest")]
    pub root: Digest,
    /// How far the replica is.
    pub stage: Stage,
    /// The manifest is not to be trusted: hash the device before the next pass.
    #[serde(default)]
    pub rehash: bool,
    /// How the source is called.
    pub source: String,
    /// The replica's device.
    pub target: Identity,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Size of an extent.
    pub extent_bytes: u32,
    /// How content is named.
    pub algorithm: Algorithm,
    /// The relationship's hash secret.
    #[serde(with = "hex_secret")]
    pub secret: Secret,
    /// When the committed generation's snapshot was taken: milliseconds since 1970.
    pub source_time_ms: u64,
    /// When it was committed.
    pub committed_time_ms: u64,
    /// Extents found rotten on the replica and healed, since pairing.
    #[serde(default)]
    pub healed_extents: u64,
    /// Set from a promotion until the source takes the new epoch over or an operator discards it: nothing
    /// is written meanwhile.
    #[serde(default)]
    pub promotion: Option<Promotion>,
}

/// What the sender remembers of a relationship.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Identity of the relationship.
    pub relationship: Uuid,
    /// The epoch of the cursor.
    pub epoch: Uuid,
    /// The last generation that the receiver is known to have committed, 0 for none.
    pub generation: u64,
    /// Its root.
    #[serde(with = "hex_digest")]
    pub root: Digest,
    /// The source's device.
    pub source: Identity,
    /// Where the replica is, as the operator wrote it (made absolute where it is local).
    pub target: String,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Size of an extent.
    pub extent_bytes: u32,
    /// How content is named.
    pub algorithm: Algorithm,
    /// The relationship's hash secret.
    #[serde(with = "hex_secret")]
    pub secret: Secret,
    /// When the committed generation's snapshot was taken: milliseconds since 1970.
    pub source_time_ms: u64,
    /// Bytes of the extents that the last pass found changed: what the next snapshot's size goes by.
    #[serde(default)]
    pub changed_bytes: Option<u64>,
}

impl ReplicaRecord {
    /// Reads the record; `None` where there is none.
    pub fn load(files: &dyn Files) -> Result<Option<ReplicaRecord>> {
        load(files, "replica")
    }

    /// Replaces the record. Durable when this returns.
    pub fn store(&self, files: &dyn Files) -> Result<()> {
        store(files, "replica", self)
    }

    /// Sizes of the volume and its extents.
    pub fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.volume_bytes, self.extent_bytes)
    }
}

impl SourceRecord {
    /// Reads the record; `None` where there is none.
    pub fn load(files: &dyn Files) -> Result<Option<SourceRecord>> {
        load(files, "source")
    }

    /// Replaces the record. Durable when this returns.
    pub fn store(&self, files: &dyn Files) -> Result<()> {
        store(files, "source", self)
    }

    /// Sizes of the volume and its extents.
    pub fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.volume_bytes, self.extent_bytes)
    }
}

fn first_line(what: &str, json: &str) -> String {
    format!("blockferry {what} record 1 crc32c {:08x}\n", crc(json.as_bytes()))
}

fn store(files: &dyn Files, what: &str, record: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(record).context(Kind::Failed, || format!("write the {what} record"))? + "\n";
    files.replace(RECORD, (first_line(what, &json) + &json).as_bytes())
}

fn load<T: DeserializeOwned>(files: &dyn Files, what: &str) -> Result<Option<T>> {
    let Some(content) = files.read(RECORD)? else { return Ok(None) };
    let place = || format!("the {what} record in {}", files.place());
    let damaged = || Error::new(Kind::Failed, format!("{} is damaged: restore it, or move the folder away and pair anew", place()));
    let text = String::from_utf8(content).map_err(|_| damaged())?;
    let (line, json) = text.split_at(text.find('\n').ok_or_else(damaged)? + 1);
    if line != first_line(what, json) {
        return Err(damaged());
    }
    serde_json::from_str(json).context(Kind::Failed, || format!("{} is of another version of blockferry", place())).map(Some)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

mod hex_digest {
    use super::*;

    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(&digest.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text).map(Digest).ok_or_else(|| serde::de::Error::custom("not a digest"))
    }
}

mod hex_secret {
    use super::*;

    pub fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(secret))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex::<SECRET_BYTES>(&text).ok_or_else(|| serde::de::Error::custom("not a secret"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::HostFiles;

    fn record() -> ReplicaRecord {
        ReplicaRecord {
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            generation: 3,
            root: Digest([4; 16]),
            stage: Stage::Applying { generation: 4, root: Digest([5; 16]), source_time_ms: 6 },
            rehash: false,
            source: "host:/dev/vg/volume".into(),
            target: Identity { stable: "file:1:/x".into(), path: "/x".into(), bytes: 1 << 20, is_device: false },
            volume_bytes: 1 << 20,
            extent_bytes: 65536,
            algorithm: Algorithm::Xxh3,
            secret: [7; SECRET_BYTES],
            source_time_ms: 8,
            committed_time_ms: 9,
            healed_extents: 0,
            promotion: None,
        }
    }

    #[test]
    fn a_record_reads_back_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let files = HostFiles::new(folder.path());
        assert_eq!(ReplicaRecord::load(&files).unwrap(), None);
        record().store(&files).unwrap();
        assert_eq!(ReplicaRecord::load(&files).unwrap(), Some(record()));
        let path = folder.path().join(RECORD);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut broken = good.clone();
            broken[at] ^= 4;
            std::fs::write(&path, &broken).unwrap();
            assert!(ReplicaRecord::load(&files).is_err(), "byte {at}");
        }
    }
}
