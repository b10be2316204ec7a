//! The records of both sides: bytes as they come, and JSON under a first line that fits it.

use super::bytes::Bytes;
use super::sim::Store;
use blockferry::format::codec::crc;
use blockferry::state::{ReplicaRecord, SourceRecord};
use std::sync::Arc;

/// First byte 0 and 1: the rest is the file. Else: its JSON; even for a replica's, odd for a source's.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let what = if how % 2 == 0 { "replica" } else { "source" };
    let line = format!("blockferry {what} record 1 crc32c {:08x}\n", crc(bytes.0));
    let file = if how < 2 { bytes.0.to_vec() } else { [line.as_bytes(), bytes.0].concat() };
    let store = Store::default();
    store.put("record", Arc::new(file));
    if how % 2 == 0 {
        if let Ok(Some(record)) = ReplicaRecord::load(&store) {
            let _ = record.geometry();
            record.store(&store).expect("a record can be stored");
            assert_eq!(ReplicaRecord::load(&store).expect("what we write we read"), Some(record));
        }
    } else if let Ok(Some(record)) = SourceRecord::load(&store) {
        let _ = record.geometry();
        record.store(&store).expect("a record can be stored");
        assert_eq!(SourceRecord::load(&store).expect("what we write we read"), Some(record));
    }
}
